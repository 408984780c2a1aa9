"""Records, the files of restored images: their format, paths, plans, submissions and merging."""
