// The Gaussian stamp of a landmark: separable, cut to a square window around its pixel and to the image.
#pragma once
#include "vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

// The pixels [first, last] of one axis that a stamp covers within the image; it covers none where first > last.
struct Support {
    int first, last;
    float centre;
    bool empty() const { return first > last; }
    int size() const { return last - first + 1; }
};

struct Gaussian {
    bool subpixel;  // centred at the landmark itself, else at its pixel (its coordinates truncated)
    int radius;
    float sigma;

    Support support(float at, int size) const {
        // outside these bounds (or NaN) no pixel is reached, and within them the conversion to int is defined
        if (!(at > float(-radius - 2) && at < float(size + radius + 1))) return {0, -1, 0.0f};
        const float pixel = subpixel ? __builtin_rintf(at) : __builtin_truncf(at);
        const int first = int(pixel) - radius, last = int(pixel) + radius;
        return {first < 0 ? 0 : first, last < size ? last : size - 1, subpixel ? at : pixel};
    }

    // to[x - first] = exp(-(x - centre)^2 / (2 sigma^2)), written in whole vectors
    void values(const Support& s, float* to) const {
        const float scale = -0.5f / (sigma * sigma);
        vf lane;
        for (int l = 0; l < VL; ++l) lane[l] = float(l);
        for (int x = s.first; x <= s.last; x += VL) {
            const vf d = (float(x) + lane) - s.centre;
            store(to + (x - s.first), exp_of_negative(d * d * scale));
        }
    }

    // The derivatives of the Gaussian's values by its centre.
    void slopes(const Support& s, const float* values, float* to) const {
        const float scale = 1.0f / (sigma * sigma);
        for (int x = s.first; x <= s.last; ++x) to[x - s.first] = values[x - s.first] * (float(x) - s.centre) * scale;
    }

    // Floats that the values of an axis of `size` pixels take: the last vector may reach past them.
    static int64_t room(int64_t size) { return size + VL; }
};

}  // namespace KILN_NAMESPACE
}  // namespace kiln
