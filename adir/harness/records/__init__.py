"""What a finished picture leaves on disk: its record, where everything lies, submissions and merging."""
