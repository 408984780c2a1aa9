"""Pictures by id: test sets and corpora alike."""
