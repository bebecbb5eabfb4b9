// How convolutions read and write NHWC tensors: bands are copied to float32, results are stored with their epilogue.
#pragma once
#include "vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

// What stands at the pixels beside an image. CIRCULAR: the image again.
enum Border { ZEROS = 0, REFLECT = 1, REPLICATE = 2, CIRCULAR = 3 };

// The index in 0 ... n - 1 of what stands at index i of an axis, or -1 for a zero.
static inline int index_inside(int i, int n, Border border) {
    if (i >= 0 && i < n) return i;
    switch (border) {
    case REFLECT: return i < 0 ? -i : 2 * (n - 1) - i;
    case REPLICATE: return i < 0 ? 0 : n - 1;
    case CIRCULAR: return i < 0 ? i + n : i - n;
    default: return -1;
    }
}

// A dense NHWC tensor to read; data2, if given, holds further channels of the same pixels. With `output`, elements are
// multiplied by the activation's derivative at it: the gradient after the activation becomes the gradient before it.
struct Source {
    Dtype dtype;
    int height, width, channels;
    const void* data;
    int channels2 = 0;
    const void* data2 = nullptr;
    const void* output = nullptr;
    Activation activation = NONE;
    float slope = 0;
    Border border = ZEROS;

    int all_channels() const { return channels + channels2; }
};

// Rows from `row0` on and columns from `column0` on of a few images, as float32 with `channels` per pixel. A band is a
// copy, with the border's values outside of the image, or a view of the tensor itself, which ends where the image ends.
struct Band {
    float* data;
    int row0, column0, columns, channels;
    int rows = 0;
    int64_t image_step = 0;
    Border border = ZEROS;  // of a view
    float* at(int row, int column) const {
        return data + (int64_t(row - row0) * columns + (column - column0)) * channels;
    }
    Band image(int i) const {
        Band one = *this;
        one.data += i * image_step;
        return one;
    }
    bool holds_row(int row) const { return row >= row0 && row < row0 + rows; }
    bool holds_column(int column) const { return column >= column0 && column < column0 + columns; }
    bool holds(int row, int column, int side) const {
        return holds_row(row) && holds_column(column) && holds_row(row + side - 1) && holds_column(column + side - 1);
    }
};

// The address of what stands at (row, column) of a view's image or beside it: of `zeros` where that is nothing. A square may
// reach further than a border does: what no result reads is zero.
static inline const float* pixel_or(const Band& view, int row, int column, const float* zeros) {
    const int r = index_inside(row, view.rows, view.border), c = index_inside(column, view.columns, view.border);
    return view.holds_row(r) && view.holds_column(c) ? view.at(r, c) : zeros;
}

// The consecutive images of a batch that one work item covers.
struct Images {
    int64_t first;
    int count;
};

// PADDED: each pixel of a band is padded with zeros to whole vectors. DENSE: pixels lie as close as in the tensor, so
// that those under neighbouring taps are one run of numbers.
enum Spacing { DENSE, PADDED };

static inline void fill_channels(float* to, const void* from, int64_t index, int64_t n, Dtype dtype, float scale) {
    int64_t c = 0;
    for (; c + VL <= n; c += VL) store(to + c, load_as(dtype, from, index + c) * scale);
    if (c < n) store(to + c, load_part(dtype, from, index + c, int(n - c)) * scale);
}

template <Activation KIND> static inline void fill_gradient(float* to, const Source& s, int64_t index, float scale) {
    int c = 0;
    for (; c + VL <= s.channels; c += VL)
        store(to + c, load_as(s.dtype, s.data, index + c) * scale *
                          derivative(KIND, load_as(s.dtype, s.output, index + c), s.slope));
    if (c < s.channels) {
        const int n = s.channels - c;
        store(to + c, load_part(s.dtype, s.data, index + c, n) * scale *
                          derivative(KIND, load_part(s.dtype, s.output, index + c, n), s.slope));
    }
}

template <Activation KIND> static void fill_pixel(float* to, const Source& s, int64_t pixel, float scale, int) {
    fill_gradient<KIND>(to, s, pixel * s.channels, scale);
}
// Where the derivative is one everywhere, the values are copied.
template <> void fill_pixel<NONE>(float* to, const Source& s, int64_t pixel, float scale, int padded) {
    if (s.channels2 && padded >= VL) store(to + padded - VL, splat(0.0f));
    fill_channels(to, s.data, pixel * s.channels, s.channels, s.dtype, scale);
    if (s.channels2) fill_channels(to + s.channels, s.data2, pixel * s.channels2, s.channels2, s.dtype, scale);
}

// Fills pixels [first, last) of one row, in ascending order: the next pixel overwrites a vector's surplus lanes.
template <Activation KIND>
static void fill_row(float* to, const Source& s, int64_t pixel0, int first, int last, float scale, int channels) {
    for (int column = first; column < last; ++column, to += channels)
        fill_pixel<KIND>(to, s, pixel0 + column, scale, channels);
}

static void fill_pixels(float* to, const Source& s, int64_t pixel0, int first, int last, float scale, int channels) {
    if (s.dtype == F32 && channels == s.channels && !s.channels2 && !s.output && scale == 1.0f) {
        const float* from = static_cast<const float*>(s.data) + (pixel0 + first) * channels;
        std::memcpy(to, from, sizeof(float) * (last - first) * channels);
        return;
    }
    switch (s.output ? s.activation : NONE) {
    case ELU: return fill_row<ELU>(to, s, pixel0, first, last, scale, channels);
    case RELU: return fill_row<RELU>(to, s, pixel0, first, last, scale, channels);
    case LEAKY_RELU: return fill_row<LEAKY_RELU>(to, s, pixel0, first, last, scale, channels);
    case TANH: return fill_row<TANH>(to, s, pixel0, first, last, scale, channels);
    case SIGMOID: return fill_row<SIGMOID>(to, s, pixel0, first, last, scale, channels);
    default: return fill_row<NONE>(to, s, pixel0, first, last, scale, channels);
    }
}

// Copies rows [row0, row1) and columns [column0, column1) of some images to scratch memory, with the border's values
// outside of the image, and zeros past those. scale: a factor for each image of the batch; null: none. Two vectors past
// the end may be written and read.
static Band fill_band(Slot slot, const Source& s, Images images, const float* scale, Spacing spacing, int row0,
                      int row1, int column0, int column1) {
    const int channels = spacing == DENSE ? s.all_channels() : round_up(s.all_channels(), VL);
    Band band{nullptr, row0, column0, column1 - column0, channels, row1 - row0};
    band.image_step = int64_t(row1 - row0) * band.columns * channels;
    band.data = scratch(slot, images.count * band.image_step + 2 * VL);
    for (int i = 0; i < images.count; ++i) {
        const int64_t image = images.first + i;
        const float factor = scale ? scale[image] : 1.0f;
        for (int row = row0; row < row1; ++row) {
            float* line = band.at(row, column0) + i * band.image_step;
            const int from = index_inside(row, s.height, s.border);
            if (from < 0 || from >= s.height) {
                std::memset(line, 0, sizeof(float) * band.columns * channels);
                continue;
            }
            const int64_t pixel0 = (image * s.height + from) * s.width;
            for (int column = column0; column < column1;) {
                const int inside = index_inside(column, s.width, s.border);
                const int last = column < 0 || column >= s.width ? column + 1 : column1 < s.width ? column1 : s.width;
                float* to = line + int64_t(column - column0) * channels;
                if (inside < 0 || inside >= s.width)
                    std::memset(to, 0, sizeof(float) * channels);
                else
                    fill_pixels(to, s, pixel0, inside, inside + last - column, factor, channels);
                column = last;
            }
        }
    }
    return band;
}

// A view of the images where they are float32 with whole vectors of channels, else a padded copy of the rows and
// columns.
static inline Band view_or_band(Slot slot, const Source& s, Images images, int row0, int row1, int column0,
                                int column1) {
    if (s.dtype != F32 || s.channels2 || s.channels % VL)
        return fill_band(slot, s, images, nullptr, PADDED, row0, row1, column0, column1);
    const int64_t image_step = int64_t(s.height) * s.width * s.channels;
    float* data = static_cast<float*>(const_cast<void*>(s.data)) + images.first * image_step;
    return {data, 0, 0, s.width, s.channels, s.height, image_step, s.border};
}

// A range of indices.
struct Span {
    int first, last;
    bool empty() const { return first >= last; }
};

// Results for the pixels of a border, `size` on each side of a height x width image: gradients that belong to the pixels
// whose values stand there. Float32, [image][pixel][padded channels]; the rows above and below, then the sides.
struct Frame {
    int size = 0, height = 0, width = 0, padded = 0;
    Border border = ZEROS;
    float* data = nullptr;

    int64_t pixels() const { return 2ll * size * (width + 2 * size + height); }
    float* at(int64_t image, int row, int column) const {
        const int across = width + 2 * size, from_left = column + size;
        int64_t pixel = 0;
        if (row < 0)
            pixel = int64_t(row + size) * across + from_left;
        else if (row >= height)
            pixel = int64_t(size + row - height) * across + from_left;
        else
            pixel = 2ll * size * (across + row) + (column < 0 ? from_left : size + column - width);
        return data + (image * pixels() + pixel) * padded;
    }
};

// A dense NHWC tensor to write, with the scale, bias, residual and activation that are applied on the way. channels2 further
// channels go to data2. data or data2 may be null: their channels are then left out.
struct Sink {
    Dtype dtype;
    int height, width, channels;
    void* data;
    int channels2 = 0;
    void* data2 = nullptr;
    const float* bias = nullptr;     // padded to whole vectors
    const float* scale = nullptr;    // likewise: factors of what the bias is added to; only where there is a bias
    const void* residual = nullptr;  // a tensor like data that is added to it; there is no channels2 then
    Activation activation = NONE;
    float slope = 0;
    Frame frame{};  // takes what lies outside of the image

    // Those of `count` rows (or columns) from `row` on that are in the image or in the frame, counted from `row`.
    Span rows(int row, int count) const { return reached(row, count, height); }
    Span columns(int column, int count) const { return reached(column, count, width); }
    bool holds(int row, int column, int side) const {
        return row >= 0 && column >= 0 && row + side <= height && column + side <= width;
    }
    int64_t pixel(int64_t image, int row, int column) const { return (image * height + row) * width + column; }
    void put_outside(int64_t image, int row, int column, int c, vf v) const {
        store(frame.at(image, row, column) + c, v);
    }

    void put(int64_t pixel, int c, vf v) const {
        if (bias) v = scale ? v * load(scale + c) + load(bias + c) : v + load(bias + c);
        if (residual && c < channels)
            v += load_part(dtype, residual, pixel * channels + c, channels - c < VL ? channels - c : VL);
        v = activate(activation, v, slope);
        if (c + VL <= channels) {
            if (data) store_as(dtype, data, pixel * channels + c, v);
        } else if (c < channels || !channels2) {
            const int n = channels - c;
            if (n > 0 && data) store_part(dtype, data, pixel * channels + c, v, n);
            if (channels2 && data2) put_second(pixel, 0, v, n, VL - n < channels2 ? VL - n : channels2);
        } else if (data2) {
            const int done = c - channels, left = channels2 - done;
            if (left > 0) put_second(pixel, done, v, 0, left < VL ? left : VL);
        }
    }

    // Adds the frame's gradients of one image to those of the pixels in `row` whose values stand there.
    void add_frame(int64_t image, int row) const {
        for (int r = -frame.size; r < height + frame.size; ++r) {
            if (index_inside(r, height, frame.border) != row) continue;
            for (int column = -frame.size; column < width + frame.size; ++column)
                if (!holds(r, column, 1)) {
                    const float* from = frame.at(image, r, column);
                    const int64_t to = pixel(image, row, index_inside(column, width, frame.border));
                    add(data, channels, to, from);
                    add(data2, channels2, to, from + channels);
                }
        }
    }

private:
    Span reached(int at, int count, int n) const {
        const int below = -frame.size - at, above = n + frame.size - at;
        return {below > 0 ? below : 0, above < count ? above : count};
    }

    void add(void* to, int n, int64_t pixel, const float* from) const {
        for (int c = 0; to && c < n; c += VL) {
            const int lanes = n - c < VL ? n - c : VL;
            const int64_t index = pixel * n + c;
            store_part(dtype, to, index, load_part(dtype, to, index, lanes) + load_part(F32, from, c, lanes), lanes);
        }
    }

    void put_second(int64_t pixel, int first, vf v, int lane, int n) const {
        alignas(64) float lanes[2 * VL] = {};
        store(lanes, v);
        store_part(dtype, data2, pixel * channels2 + first, load(lanes + lane), n);
    }
};

// Calls body with a put of whole float32 vectors; true.
template <Activation KIND, bool SCALED, bool RESIDUAL, class Body>
static inline bool with_biased_put(const Sink& sink, Body body) {
    float* to = static_cast<float*>(sink.data);
    const int channels = sink.channels;
    const float *bias = sink.bias, *scale = sink.scale, *residual = static_cast<const float*>(sink.residual);
    const float slope = sink.slope;
    body([=](int64_t pixel, int c, vf v) {
        v = SCALED ? v * load(scale + c) + load(bias + c) : v + load(bias + c);
        if (RESIDUAL) v += load(residual + pixel * channels + c);
        store(to + pixel * channels + c, activate(KIND, v, slope));
    });
    return true;
}

// Calls body with such a put where one is compiled for the sink's activation and residual; whether there is one.
template <bool SCALED, class Body> static inline bool biased_put_of(const Sink& sink, Body body) {
    switch (sink.activation) {
    case NONE:
        if (sink.residual) return with_biased_put<NONE, SCALED, true>(sink, body);
        return with_biased_put<NONE, SCALED, false>(sink, body);
    case RELU:
        if (sink.residual) return with_biased_put<RELU, SCALED, true>(sink, body);
        return with_biased_put<RELU, SCALED, false>(sink, body);
    case ELU: return !sink.residual && with_biased_put<ELU, SCALED, false>(sink, body);
    case LEAKY_RELU: return !sink.residual && with_biased_put<LEAKY_RELU, SCALED, false>(sink, body);
    default: return false;
    }
}

// Calls body(put) with the put(pixel, c, v) that does the least work for this sink. Few kinds of it: each is compiled into
// every algorithm.
template <class Body> static inline void with_put(const Sink& sink, Body body) {
    if (sink.dtype == F32 && sink.channels % VL == 0 && sink.data && !sink.channels2) {
        float* to = static_cast<float*>(sink.data);
        const int channels = sink.channels;
        if (!sink.bias && !sink.residual && sink.activation == NONE)
            return body([=](int64_t pixel, int c, vf v) { store(to + pixel * channels + c, v); });
        if (sink.bias && (sink.scale ? biased_put_of<true>(sink, body) : biased_put_of<false>(sink, body))) return;
    }
    body([&sink](int64_t pixel, int c, vf v) { sink.put(pixel, c, v); });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
