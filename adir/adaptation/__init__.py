"""Few-shot fine-tuning of a backbone on the images that adaptation is given."""
