"""Files of networks and data sets: registered in conf/weights/, fetched, verified, read safely."""
