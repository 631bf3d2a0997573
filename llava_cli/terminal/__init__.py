"""What a person sees: answers as they stream, notes, errors, JSON. Knows no models."""
