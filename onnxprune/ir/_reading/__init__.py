"""Reading of files: kinds of foreign files, texts, functions, the order of nodes, loops without an end."""
