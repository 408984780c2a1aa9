"""One cell: composed from the configuration, built, named by its identity, checked against the
machine.
"""
