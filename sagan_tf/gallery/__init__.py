"""Pictures of what a generator has learned, and large numbers of its samples."""
