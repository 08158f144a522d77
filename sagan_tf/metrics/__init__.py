"""What the package measures, with which classifier, against which images, and what is kept on record."""
