"""Where pictures are read from: folders, tables, tar files, Open Images."""
