"""What a finished image leaves on disk: its record, where everything lies, submissions and merging."""
