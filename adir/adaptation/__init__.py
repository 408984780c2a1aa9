"""Few-shot fine-tuning of a backbone on the pictures that adaptation is given."""
