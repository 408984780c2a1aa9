"""Image sources: folders, tables, tar files, Open Images."""
