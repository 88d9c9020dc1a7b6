"""What a person sees: progress, pictures, an evaluation in words and tables."""
