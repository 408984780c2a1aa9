"""Files of networks and data sets: register (conf/weights/), download, verify, read safely."""
