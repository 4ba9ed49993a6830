"""The adapters: one module per architecture or library, each building a module and the layouts of its weights files."""
