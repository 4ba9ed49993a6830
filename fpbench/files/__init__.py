"""Files that are whole or absent, where they lie, how they are transferred, and how far a long step is."""
