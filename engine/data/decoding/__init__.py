"""From encoded files to batches of pixels.

plain_images     what Pillow reads: headers, and files that DALI does not read as people see them
colour_profiles  what an embedded colour profile means, and the way to sRGB
decoding_memory  the memory that pictures may take while Pillow decodes them
dali             NVIDIA DALI's pipelines: files to squares of uint8
stored_squares   where the square of a file lies, how it is turned, and its landmarks in it
upload           what a batch is made from, on its way to a GPU
assemble         the last step: windows of the squares, mirrored, in [-1, 1]
"""
