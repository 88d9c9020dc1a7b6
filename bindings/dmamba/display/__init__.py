"""What a person sees: progress, pictures, tables in a notebook."""
