"""From images to vectors whose distances say how alike the images are."""
