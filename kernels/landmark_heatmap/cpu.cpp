// landmark_heatmap on the CPU: zeros are written once, block by block; a block's stamps follow while it is in the cache.
#include "../_cpu/gaussian.h"
#include "../_cpu/parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

// The sizes and options of a call.
struct Maps {
    Dtype dtype;
    bool channels_last;
    Gaussian gaussian;
    int64_t batch;
    int count, height, width;

    template <class A>
    explicit Maps(const A& a)
        : dtype(Dtype(a.dtype)), channels_last(a.channels_last),
          gaussian{a.subpixel != 0, a.radius, float(a.sigma)}, batch(a.batch), count(a.count), height(a.height),
          width(a.width) {}

    // where pixel (row, 0) of a map lies, and how far apart its pixels are
    int64_t row(int64_t image, int n, int y) const {
        return channels_last ? (image * height + y) * width * count + n : ((image * count + n) * height + y) * width;
    }
    int64_t step() const { return channels_last ? count : 1; }
};

// Rows [y0, y1) of one landmark's stamp.
static void stamp(const Maps& m, const float* landmark, int64_t image, int n, int y0, int y1, void* out) {
    const Support rows = m.gaussian.support(landmark[1], m.height);
    const int first = rows.first < y0 ? y0 : rows.first, last = rows.last < y1 ? rows.last : y1 - 1;
    if (first > last) return;
    const Support columns = m.gaussian.support(landmark[0], m.width);
    if (columns.empty()) return;
    const int64_t tall = Gaussian::room(m.height), wide = Gaussian::room(m.width);
    float* along_y = scratch(Slot::GAUSSIANS, tall + 2 * wide);
    float* along_x = along_y + tall;
    float* line = along_x + wide;  // one row in the result's dtype, in whole vectors
    m.gaussian.values(rows, along_y);
    m.gaussian.values(columns, along_x);
    for (int y = first; y <= last; ++y) {
        const vf scale = splat(along_y[y - rows.first]);
        for (int x = 0; x < columns.size(); x += VL) store_as(m.dtype, line, x, load(along_x + x) * scale);
        const int64_t at = m.row(image, n, y) + columns.first * m.step();
        const char* from = reinterpret_cast<char*>(line);
        char* to = static_cast<char*>(out) + at * element_size(m.dtype);
        if (!m.channels_last)
            std::memcpy(to, from, columns.size() * element_size(m.dtype));
        else if (m.dtype == F32)
            for (int64_t x = 0; x < columns.size(); ++x) std::memcpy(to + x * m.count * 4, from + x * 4, 4);
        else
            for (int64_t x = 0; x < columns.size(); ++x) std::memcpy(to + x * m.count * 2, from + x * 2, 2);
    }
}

// landmarks: (batch, count, 2) float32; maps: (batch, count, height, width).
KILN_FUNCTION(landmark_heatmap_forward,
              Pointer landmarks, maps;
              Integer dtype, channels_last, subpixel, batch; Size radius, count, height, width;
              Real sigma;) {
    const Maps m(arguments);
    const float* landmarks = arguments.landmarks;
    char* out = arguments.maps;
    const int64_t row_bytes = int64_t(m.width) * element_size(m.dtype) * (m.channels_last ? m.count : 1);
    const int64_t fit = (128 << 10) / row_bytes;
    const int height = int(fit < 1 ? 1 : fit < m.height ? fit : m.height), bands = (m.height + height - 1) / height;
    const int64_t planes = m.channels_last ? m.batch : m.batch * m.count;

    for_parts(planes * bands, [&](int64_t item) {
        const int64_t plane = item / bands;
        const int y0 = int(item % bands) * height, y1 = y0 + height < m.height ? y0 + height : m.height;
        std::memset(out + (plane * m.height + y0) * row_bytes, 0, (y1 - y0) * row_bytes);
        const int64_t image = m.channels_last ? plane : plane / m.count;
        const int n0 = m.channels_last ? 0 : int(plane % m.count), n1 = m.channels_last ? m.count : n0 + 1;
        for (int n = n0; n < n1; ++n) stamp(m, landmarks + (image * m.count + n) * 2, image, n, y0, y1, out);
    });
}

// grad: of the maps, laid out as they are; dlandmarks: (batch, count, 2) float32.
KILN_FUNCTION(landmark_heatmap_backward,
              Pointer landmarks, grad, dlandmarks;
              Integer dtype, channels_last, subpixel, batch; Size radius, count, height, width;
              Real sigma;) {
    const Maps m(arguments);
    const float* landmarks = arguments.landmarks;
    const void* gradient = arguments.grad;
    float* result = arguments.dlandmarks;

    for_parts(m.batch * m.count, [&](int64_t item) {
        const float* landmark = landmarks + item * 2;
        const Support rows = m.gaussian.support(landmark[1], m.height);
        const Support columns = m.gaussian.support(landmark[0], m.width);
        float by_x = 0, by_y = 0;
        if (!rows.empty() && !columns.empty()) {
            const int64_t tall = Gaussian::room(m.height), wide = Gaussian::room(m.width);
            float* along_y = scratch(Slot::GAUSSIANS, 2 * tall + 2 * wide);
            float *slope_y = along_y + tall, *along_x = slope_y + tall, *slope_x = along_x + wide;
            m.gaussian.values(rows, along_y);
            m.gaussian.slopes(rows, along_y, slope_y);
            m.gaussian.values(columns, along_x);
            m.gaussian.slopes(columns, along_x, slope_x);
            for (int y = rows.first; y <= rows.last; ++y) {
                const int64_t at = m.row(item / m.count, int(item % m.count), y);
                float value = 0, slope = 0;
                for (int x = columns.first; x <= columns.last; ++x) {
                    const float g = load_part(m.dtype, gradient, at + x * m.step(), 1)[0];
                    value += g * along_x[x - columns.first];
                    slope += g * slope_x[x - columns.first];
                }
                by_x += slope * along_y[y - rows.first];
                by_y += value * slope_y[y - rows.first];
            }
        }
        result[item * 2] = by_x;
        result[item * 2 + 1] = by_y;
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
