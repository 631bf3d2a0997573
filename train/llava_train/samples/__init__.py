"""Files of samples: read and written row by row, checked, counted, shown, split, mixed, filtered."""
