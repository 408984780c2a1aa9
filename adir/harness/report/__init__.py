"""What is made of records for people to look at."""
