"""From pictures to vectors whose distances say how alike the pictures are."""
