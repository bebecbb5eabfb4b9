"""From encoded files to batches of pixels.

plain_images    what Pillow reads: headers, and files that DALI does not read as people see them
dali            NVIDIA DALI's pipelines: files to squares of uint8
stored_squares  where the square of a file lies, and its landmarks in it
upload          what a batch is made from, on its way to a GPU
assemble        the last step: windows of the squares, mirrored, in [-1, 1]
"""
