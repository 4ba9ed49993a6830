"""What people read: tables, figures, and the page that holds them all. Numbers come from ``analysis``."""
