"""From encoded files to batches of pixels: validation, DALI, and the way to the device."""
