"""What each point of an image attends to: maps, figures, and a page to explore."""
