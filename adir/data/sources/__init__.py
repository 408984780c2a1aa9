"""Where images are read from: folders, tables, tar files, Open Images."""
