"""The steps, named by number; a step that was released never changes."""
