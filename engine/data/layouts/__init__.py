"""The layouts that a data set can have: how its files and tables are laid out, and what they tell of the images.

sources         a folder or a zip as names and bytes
listing         Listing: what any layout tells, by image name
tables          tables and arrays in the dialects that people save them in
names           the order of frames, and the file that a table means by a name
pts             .pts files
manifest, celeba, pose_pairs   a file for each layout (or each family of them)
landmark_video  videos, whose frames are cropped into a set in the manifest layout first
which_layout    finds the layout of a source and returns its Listing

A layout is a function `list_NAME(source, files, images) -> Listing | None`: None where the source has another layout,
InputError where its tables cannot be understood. To add one:

1. Write the function in a file of its own here. `celeba.py` is an example: it reads tables through `tables`, and fills
   a Listing with the names, and with the landmarks, splits, clips, pairs or identities that it finds.
2. Add the function to LAYOUTS in `which_layout.py`.
3. Describe the layout in docs/data.md, and test it as tests/data/test_celeba.py does.

Everything else follows from the Listing: validation, splits, samples of several images, `kiln data validate`.
"""
