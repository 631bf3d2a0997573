"""Files of samples: read row by row, checked, counted, shown, split, mixed, converted."""
