// The scratch memory of a thread: buffers that are kept between calls, named by what lies in them.
#pragma once
#include <cstdint>

namespace kiln {

// The buffers by name; names with the same number share a buffer. In a thread an operator's call ends before another one
// begins, so operators share buffers freely. Two names of one operator share only where a comment says why they never
// meet. What one thread prepares for all (PACKED_WEIGHTS, PARAMETER_SUMS, ALL_TILES, ALL_INPUTS, ALL_GRADIENTS,
// COLUMNS, COLUMN_RESULTS, FRAME, SPLIT_SUMS, CHUNK_SUMS, PART_SUMS, COLUMN_CONSTANTS, DOMAIN_SUMS) lies in the calling
// thread's buffer, which no thread asks for again before all have read it.
enum class Slot {
    // resize_conv_act
    INPUT_BAND,            // rows of an input as float32; in backward those of the second input follow the first's
    GRADIENT_BAND,         // rows of the gradient before the activation as float32
    TRANSFORMED_INPUTS,    // a block of tiles in the transformed domain
    TRANSFORMED_PRODUCTS,  // the products of that block, or in a weight gradient its transformed gradients
    DIRECT_ROWS,           // results of a direct pass for one cell row, before scale, bias and activation
    PARAMETER_SUMS,        // the parameters' gradients, summed by each thread apart
    SEGMENTS,              // offsets of a weight gradient's segments
    PACKED_WEIGHTS,        // weights in the order the products read them, and the padded bias and scale
    ZEROS,                 // the pixel that tiles read past the image's edges
    GATHERED,              // combinations of a few weights: on their way to the packed ones, or multiplied at once
    ALL_TILES,             // tiles of all images in the transformed domain: of a pass that packs its weights by panels,
    ALL_INPUTS,            // and of both operands of a weight gradient
    ALL_GRADIENTS,
    FRAME,                 // gradients of the pixels beside each image, which belong to those whose values stand there
    COUNT,
    COPIED_WEIGHTS = TRANSFORMED_PRODUCTS,  // of an unpacked pass, which transforms nothing: a block of the weights, or of
                                            // their gradient; what its pixels meet, and their products
    COLUMNS = ALL_INPUTS,
    COLUMN_RESULTS = ALL_TILES,
    SECOND_BAND = GRADIENT_BAND,         // rows of the second input in forward, which has no gradient
    SECOND_SUMS = PARAMETER_SUMS,        // the second input's convolution in forward, which has no parameter gradients
    BLOCK_SUMS = TRANSFORMED_PRODUCTS,   // of a weight gradient whose tiles are transformed before
    THIN_PRODUCTS = TRANSFORMED_INPUTS,  // a thin pass's products with all taps; a direct pass transforms nothing

    // landmark_conv, which also has INPUT_BAND, GRADIENT_BAND, PARAMETER_SUMS and PACKED_WEIGHTS
    OUTPUT_SUMS = GRADIENT_BAND,           // a band's sums in forward, which has no gradient
    STAMP_COLUMNS = TRANSFORMED_INPUTS,    // a kernel met by the Gaussian along x, or a gradient met by it along y
    GAUSSIANS = TRANSFORMED_PRODUCTS,      // the Gaussian's values and slopes along both axes; landmark_heatmap too
    IMAGE_GRADIENT = DIRECT_ROWS,          // a band's gradient of the image, and what one output row gives to it
    KERNEL_GRADIENT = DIRECT_ROWS,         // one landmark's: begun when the band's image gradient is stored
    BIAS_ROWS = SEGMENTS,                  // the sum of a few rows of gradients

    // gram and style_loss
    SPLIT_SUMS = INPUT_BAND,               // triangles of all splits of all images
    TRIANGLE = GRADIENT_BAND,              // one image's triangle, where images are not split
    PACKED_PIXELS = TRANSFORMED_INPUTS,    // panels of an image's pixels in forward
    PACKED_MATRIX = TRANSFORMED_INPUTS,    // panels of an image's matrix in backward
    CONVERTED = TRANSFORMED_PRODUCTS,      // features as float32
    GRADIENT_TILE = DIRECT_ROWS,           // a tile of the features' gradient before it is stored

    // l1_autoencoder_loss
    CHUNK_SUMS = PACKED_WEIGHTS,           // float64 sums of all chunks of all samples

    // norm_act
    PART_SUMS = PACKED_WEIGHTS,            // statistics, or sums of gradients, of all parts of all domains
    COLUMN_CONSTANTS = PARAMETER_SUMS,     // what normalises each column, or each domain
    DOMAIN_SUMS = SEGMENTS,                // float64 sums of gradients of all domains and channels
    CHANNEL_SUMS = DIRECT_ROWS,            // float64 statistics of a domain's channels
    ROW_SUMS = GRADIENT_BAND,              // float32 sums of a block of rows

    // image_batch
    MIRRORED_ROW = INPUT_BAND,             // one row of bytes in reverse order
};

// Memory of the calling thread for at least `floats` floats, 64-byte aligned. What a slot holds stays until the thread
// asks for the slot again: then it may move, and its old contents are lost.
float* scratch(Slot slot, int64_t floats);

}  // namespace kiln
