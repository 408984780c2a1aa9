"""Files of finished images: records, their paths, submissions and merging."""
