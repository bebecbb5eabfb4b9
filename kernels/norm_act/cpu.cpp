// norm_act on the CPU: statistics, normalisation, affine map, residual sum and activation in two reads and one write;
// backward forms the sums before the activation again from x, and reads x and the gradient twice.
//
// A domain is what shares no statistics with the rest: an image, an image's group, a channel, or the whole batch. Where
// there are enough domains for all threads, one thread measures a domain and normalises it while it is in its cache.
// Else domains are cut into parts. How a domain is cut depends on the shape alone, and so do all bits of the results.
#include <cmath>

#include "../_cpu/norm.h"
#include "../_cpu/parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int64_t PIECE = 4096;   // elements of a run that are summed in float32 before they join a float64 total
constexpr int64_t BLOCK = 16384;  // elements of a block of rows, which is read twice while it is in the cache
constexpr int64_t CHUNKS = 64;    // most parts of a domain of rows
constexpr int64_t SMALL = 32768;  // elements that one thread normalises sooner than others are woken

// The sizes of x, dense NCHW (planar) or NHWC. groups: each image's groups of channels have statistics of their own; 0:
// each channel has them over the batch.
struct Shape {
    int64_t batch, channels, pixels, groups;
    bool planar;

    int64_t size() const { return batch * channels * pixels; }
    int64_t in_group() const { return groups ? channels / groups : 1; }
    int64_t per_statistic() const { return groups ? in_group() * pixels : batch * pixels; }
};

// The parameters and statistics, float32. mean, var: (channels,), or with groups (batch, groups).
struct Parameters {
    const float *weight, *bias;
    float *mean, *var;
    double eps;

    float weight_of(int64_t channel) const { return weight ? weight[channel] : 1.0f; }
    float bias_of(int64_t channel) const { return bias ? bias[channel] : 0.0f; }
    double rstd(int64_t statistic) const { return 1.0 / std::sqrt(double(var[statistic]) + eps); }
};

// The gradients of the parameters, float32 or null, and for each channel the means of g and of g times the normalised x
// over more than this batch, (2, channels), or null. constant: the statistics do not depend on x.
struct ParameterGradients {
    float *dweight, *dbias;
    const float* means;
    bool constant;

    bool wanted() const { return dweight || dbias; }
    bool needs_sums(bool needs_x) const { return wanted() || (needs_x && !constant && !means); }
    void set(int64_t channel, double of_weight, double of_bias) const {
        if (dweight) dweight[channel] = float(of_weight);
        if (dbias) dbias[channel] = float(of_bias);
    }
};

// One of the two times that a pass goes over x: how many parts of a domain there are, and how many of them lie next to
// each other before those of the next domain come.
struct Round {
    int64_t parts, together;
};

// How a pass goes through a tensor of `size` elements: domains are measured, then written.
struct Steps {
    int64_t domains, size;
    Round measured, written;

    // Calls body(part) for all parts, in this thread alone where the tensor is small.
    template <class Body> void share(int64_t parts, const Body& body) const {
        if (size >= SMALL) return for_parts(parts, body);
        for (int64_t part = 0; part < parts; ++part) body(part);
    }

    // Calls body(domain, part) for all parts of all domains in the order in which they lie in memory; backwards: blocks of
    // them from the last to the first, in each of which the processor still foresees what is read next.
    template <class Body> void share_parts(Round round, bool backwards, const Body& body) const {
        const int64_t count = domains * round.parts, block = count * BLOCK / size + 1, tail = count % block;
        share(count, [&](int64_t i) {
            const int64_t after = i - tail;
            int64_t number = i;
            if (backwards) number = after < 0 ? count + after : count - tail - (after / block + 1) * block + after % block;
            const int64_t of = number / round.together;
            body(of % domains, of / domains * round.together + number % round.together);
        });
    }

    // A domain's steps in this order: prepare(domain), measure(domain, part), settle(domain), write(domain, part). What
    // was measured last, and may still be in a cache, is written first.
    template <class Prepare, class Measure, class Settle, class Write>
    void run(const Prepare& prepare, const Measure& measure, const Settle& settle, const Write& write) const {
        const int64_t threads = wanted_threads();
        const bool apart = written.together < written.parts;  // parts of other domains lie between those of one
        if (!apart && (domains % threads == 0 || domains >= 4 * threads || size < SMALL)) {
            share(domains, [&](int64_t domain) {
                prepare(domain);
                for (int64_t part = 0; part < measured.parts; ++part) measure(domain, part);
                settle(domain);
                for (int64_t part = written.parts; part-- > 0;) write(domain, part);
            });
            return;
        }
        share(domains, prepare);
        share_parts(measured, false, measure);
        share(domains, settle);
        share_parts(written, true, write);
    }
};

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }

static inline int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

// A tensor as rows of columns, of which each belongs to one channel: the pixels of an image or of the batch (NHWC), as
// many in a row as make whole vectors; or whole images (NCHW with few pixels, statistics over the batch).
struct Columns {
    const Shape shape;
    int64_t domains, rows, width;
    int64_t repeats;  // how often the channels come in a row
    int64_t run;      // columns next to each other that belong to one channel
    int64_t padded, chunk, chunks, block;

    explicit Columns(const Shape& s) : shape(s) {
        domains = s.groups ? s.batch : 1;
        run = s.planar ? s.pixels : 1;
        const int64_t lines = s.planar ? s.batch : s.size() / domains / s.channels;
        const int64_t together = s.planar ? 1 : VL / common_divisor(s.channels, VL);
        repeats = lines % together || together * s.channels > 2048 ? 1 : together;
        rows = lines / repeats;
        width = repeats * s.channels * run;
        padded = ceil_div(width, VL) * VL;
        chunk = most(ceil_div(rows, CHUNKS), most(16, BLOCK / width));
        chunks = ceil_div(rows, chunk);
        block = least(64, most(8, BLOCK / width));
    }

    static bool fits(const Shape& s) { return !s.planar || (!s.groups && s.pixels <= 64 && s.batch >= 8); }

    int64_t statistic(int64_t domain, int64_t channel) const {
        return shape.groups ? domain * shape.groups + channel / shape.in_group() : channel;
    }
    Steps steps(bool measures, bool writes) const {
        const int64_t measured = measures ? chunks : 0, written = writes ? chunks : 0;
        return {domains, shape.size(), {measured, measured}, {written, written}};
    }
    int64_t rows_of(int64_t part) const { return least(chunk, rows - part * chunk); }

    // Calls body(start, rows, rows before) for each block of rows of a part.
    template <class Body> void for_blocks(int64_t domain, int64_t part, const Body& body) const {
        const int64_t count = rows_of(part), start = (domain * rows + part * chunk) * width;
        for (int64_t r = 0; r < count; r += block) body(start + r * width, least(block, count - r), r);
    }

    // Calls body(column, channel) for all columns of a row.
    template <class Body> void for_each_column(const Body& body) const {
        int64_t column = 0;
        for (int64_t repeat = 0; repeat < repeats; ++repeat) {
            if (run == 1) {
                for (int64_t c = 0; c < shape.channels; ++c) body(column + c, c);
                column += shape.channels;
                continue;
            }
            for (int64_t c = 0; c < shape.channels; ++c)
                for (int64_t i = 0; i < run; ++i) body(column++, c);
        }
    }

    void set_constants(int64_t domain, const Parameters& p, float* mean, float* scale, float* shift) const {
        double* rstd = reinterpret_cast<double*>(scratch(Slot::CHANNEL_SUMS, 2 * 3 * shape.channels));
        for (int64_t c = 0; c < shape.channels; ++c) rstd[c] = p.rstd(statistic(domain, c));
        for_each_column([=](int64_t column, int64_t c) {
            mean[column] = p.mean[statistic(domain, c)];
            scale[column] = float(rstd[c] * p.weight_of(c));
            shift[column] = p.bias_of(c);
        });
        for (int64_t column = width; column < padded; ++column) mean[column] = scale[column] = shift[column] = 0;
    }
};

// Joins the moments of parts, each of `count` elements, in two passes: add_mean of all, then add_squares of all.
struct Joined {
    double total = 0, mean = 0, squares = 0, elements = 0;

    void add_mean(double count, double of_mean) { total += count * of_mean, elements += count; }
    void end_means() { mean = total / elements; }
    void add_squares(double count, double of_mean, double of_squares) {
        squares += of_squares + count * (of_mean - mean) * (of_mean - mean);
    }
};

// Of a part's columns, as column_moments gives them.
struct ColumnMoments {
    float* origin;
    double *mean, *squares;
};

// The mean and variance of a domain's statistics from the moments of its parts: first of each channel, then of groups.
template <class Of>
static void join_columns(const Columns& view, int64_t domain, const Of& moments, const Parameters& p) {
    const Shape& s = view.shape;
    double* mean = reinterpret_cast<double*>(scratch(Slot::CHANNEL_SUMS, 2 * 3 * s.channels));
    double *squares = mean + s.channels, count = double(view.rows * view.repeats * view.run);
    for (int64_t c = 0; c < s.channels; ++c) mean[c] = squares[c] = 0;
    const auto for_all = [&](auto body) {
        for (int64_t part = 0; part < view.chunks; ++part) {
            const ColumnMoments m = moments(domain, part);
            const double rows = double(view.rows_of(part));
            view.for_each_column([=](int64_t column, int64_t c) {
                body(c, rows, double(m.origin[column]) + m.mean[column], m.squares[column]);
            });
        }
    };
    for_all([=](int64_t c, double rows, double of_mean, double) { mean[c] += rows * of_mean; });
    for (int64_t c = 0; c < s.channels; ++c) mean[c] /= count;
    for_all([=](int64_t c, double rows, double of_mean, double of_squares) {
        squares[c] += of_squares + rows * (of_mean - mean[c]) * (of_mean - mean[c]);
    });
    for (int64_t first = 0; first < s.channels; first += s.in_group()) {
        Joined joined;
        for (int64_t c = first; c < first + s.in_group(); ++c) joined.add_mean(count, mean[c]);
        joined.end_means();
        for (int64_t c = first; c < first + s.in_group(); ++c) joined.add_squares(count, mean[c], squares[c]);
        const int64_t statistic = view.statistic(domain, first);
        p.mean[statistic] = float(joined.mean);
        p.var[statistic] = float(joined.squares / joined.elements);
    }
}

static void forward_columns(const Columns& view, const Kernels& run, const Tensors& t, const Parameters& p,
                            bool measures) {
    const int64_t padded = view.padded;
    float* parts = scratch(Slot::PART_SUMS, measures ? view.domains * view.chunks * 5 * padded : 1);
    float* constants = scratch(Slot::COLUMN_CONSTANTS, view.domains * 3 * padded);
    const auto moments = [=](int64_t domain, int64_t part) {
        float* of = parts + (domain * view.chunks + part) * 5 * padded;
        double* mean = reinterpret_cast<double*>(of + padded);
        return ColumnMoments{of, mean, mean + padded};
    };
    const auto measure = [&](int64_t domain, int64_t part) {
        const ColumnMoments m = moments(domain, part);
        float* sums = scratch(Slot::ROW_SUMS, 3 * padded);
        view.for_blocks(domain, part, [&](int64_t start, int64_t rows, int64_t before) {
            run.column_moments(t.x, start, rows, view.width, padded, before, sums, m.origin, m.mean, m.squares);
        });
    };
    const auto settle = [&](int64_t domain) {
        float* k = constants + domain * 3 * padded;
        if (measures) join_columns(view, domain, moments, p);
        view.set_constants(domain, p, k, k + padded, k + 2 * padded);
    };
    const auto write = [&](int64_t domain, int64_t part) {
        const float* k = constants + domain * 3 * padded;
        view.for_blocks(domain, part, [&](int64_t start, int64_t rows, int64_t) {
            run.apply_columns(t, {k, k + padded, k + 2 * padded, nullptr, nullptr}, start, rows, view.width);
        });
    };
    view.steps(measures, t.result).run([](int64_t) {}, measure, settle, write);
}

// The gradients of the parameters from the sums of all domains, each (2, channels): of g times the normalised x, and of g.
static void join_domains(const double* sums, int64_t domains, int64_t channels, const ParameterGradients& gradients) {
    for (int64_t c = 0; c < channels; ++c) {
        double of_weight = 0, of_bias = 0;
        for (int64_t domain = 0; domain < domains; ++domain) {
            of_weight += sums[domain * 2 * channels + c];
            of_bias += sums[(domain * 2 + 1) * channels + c];
        }
        gradients.set(c, of_weight, of_bias);
    }
}

// Sets offset and tilt of the columns of a domain, from each channel's sums of g times the normalised x, and of g.
static void set_slopes(const Columns& view, int64_t domain, const Parameters& p, const ParameterGradients& gradients,
                       const double* sums, float* offset, float* tilt) {
    const Shape& s = view.shape;
    double* of_channels = reinterpret_cast<double*>(scratch(Slot::CHANNEL_SUMS, 2 * 3 * s.channels));
    double* tilts = of_channels + s.channels;
    for (int64_t first = 0; first < s.channels; first += s.in_group()) {
        double of_weight = 0, of_bias = 0;
        for (int64_t c = first; c < first + s.in_group(); ++c) {
            const float* means = gradients.means;
            const double n = double(s.per_statistic());
            of_bias += p.weight_of(c) * (means ? double(means[c]) : sums[s.channels + c] / n);
            of_weight += p.weight_of(c) * (means ? double(means[s.channels + c]) : sums[c] / n);
        }
        const double rstd = p.rstd(view.statistic(domain, first));
        for (int64_t c = first; c < first + s.in_group(); ++c)
            of_channels[c] = rstd * of_bias, tilts[c] = rstd * rstd * of_weight;
    }
    view.for_each_column([=](int64_t column, int64_t c) { offset[column] = float(of_channels[c]), tilt[column] = float(tilts[c]); });
    for (int64_t column = view.width; column < view.padded; ++column) offset[column] = tilt[column] = 0;
}

static void backward_columns(const Columns& view, const Kernels& run, const Tensors& t, const Parameters& p,
                             const ParameterGradients& gradients) {
    const Shape& s = view.shape;
    const int64_t padded = view.padded, channels = s.channels;
    const bool sums = gradients.needs_sums(t.result);
    double* parts =
        reinterpret_cast<double*>(scratch(Slot::PART_SUMS, sums ? 2 * view.domains * view.chunks * 2 * padded : 1));
    float* constants = scratch(Slot::COLUMN_CONSTANTS, view.domains * 5 * padded);
    double* totals = reinterpret_cast<double*>(scratch(Slot::DOMAIN_SUMS, 2 * view.domains * 2 * channels));
    const auto constants_of = [=](int64_t domain) {
        const float* k = constants + domain * 5 * padded;
        const bool constant = gradients.constant;
        return Constants{k, k + padded, k + 2 * padded, k + 3 * padded, constant ? nullptr : k + 4 * padded};
    };
    const auto prepare = [&](int64_t domain) {
        float* k = constants + domain * 5 * padded;
        view.set_constants(domain, p, k, k + padded, k + 2 * padded);
    };
    const auto measure = [&](int64_t domain, int64_t part) {
        double* of = parts + (domain * view.chunks + part) * 2 * padded;
        float* sums = scratch(Slot::ROW_SUMS, 2 * padded);
        std::memset(of, 0, sizeof(double) * 2 * padded);
        view.for_blocks(domain, part, [&](int64_t start, int64_t rows, int64_t) {
            run.column_sums(t, constants_of(domain), start, rows, view.width, padded, sums, of, of + padded);
        });
    };
    const auto settle = [&](int64_t domain) {
        double* of = totals + domain * 2 * channels;
        for (int64_t c = 0; c < 2 * channels; ++c) of[c] = 0;
        for (int64_t part = 0; sums && part < view.chunks; ++part) {
            const double* of_part = parts + (domain * view.chunks + part) * 2 * padded;
            view.for_each_column([=](int64_t column, int64_t c) {
                of[channels + c] += of_part[column], of[c] += of_part[padded + column];
            });
        }
        for (int64_t c = 0; c < channels; ++c) of[c] *= p.rstd(view.statistic(domain, c));
        float* k = constants + domain * 5 * padded;
        if (!gradients.constant && t.result) set_slopes(view, domain, p, gradients, of, k + 3 * padded, k + 4 * padded);
    };
    const auto write = [&](int64_t domain, int64_t part) {
        view.for_blocks(domain, part, [&](int64_t start, int64_t rows, int64_t) {
            run.column_gradient(t, constants_of(domain), start, rows, view.width);
        });
    };
    view.steps(sums, t.result || t.dresidual).run(prepare, measure, settle, write);
    if (gradients.wanted()) join_domains(totals, view.domains, channels, gradients);
}

// A dense NCHW tensor as runs of pixels that belong to one channel. A domain is an image's group, or a channel.
struct Runs {
    const Shape shape;
    int64_t domains;
    int64_t spans, span, pieces;  // a domain's elements in memory: so many spans of one length, each cut into pieces
    int64_t planes, cuts;         // a domain's planes (of one image and channel), each cut likewise

    explicit Runs(const Shape& s) : shape(s) {
        domains = s.groups ? s.batch * s.groups : s.channels;
        spans = s.groups ? 1 : s.batch;
        span = s.in_group() * s.pixels;
        pieces = ceil_div(span, PIECE);
        planes = s.groups ? s.in_group() : s.batch;
        cuts = ceil_div(s.pixels, PIECE);
    }

    Round writing(bool wanted) const { return {wanted ? planes * cuts : 0, shape.groups ? planes * cuts : cuts}; }
    int64_t plane(int64_t domain, int64_t i) const { return shape.groups ? domain * planes + i : i * shape.channels + domain; }
    int64_t start_of_span(int64_t domain, int64_t i) const {
        return (shape.groups ? domain * planes : i * shape.channels + domain) * shape.pixels;
    }

    // Calls body(start, size) for one of a domain's pieces.
    template <class Body> void with_piece(int64_t domain, int64_t part, const Body& body) const {
        const int64_t first = part % pieces * PIECE;
        body(start_of_span(domain, part / pieces) + first, least(PIECE, span - first));
    }

    // Calls body(plane, start, size) for one of a domain's cuts.
    template <class Body> void with_cut(int64_t domain, int64_t part, const Body& body) const {
        const int64_t of = plane(domain, part / cuts), first = part % cuts * PIECE;
        body(of, of * shape.pixels + first, least(PIECE, shape.pixels - first));
    }
};

static void join_pieces(const Runs& view, int64_t domain, const Moments* moments, const Parameters& p) {
    Joined joined;
    const int64_t parts = view.spans * view.pieces;
    const auto size = [&](int64_t part) { return double(least(PIECE, view.span - part % view.pieces * PIECE)); };
    for (int64_t part = 0; part < parts; ++part) joined.add_mean(size(part), moments[part].mean);
    joined.end_means();
    for (int64_t part = 0; part < parts; ++part)
        joined.add_squares(size(part), moments[part].mean, moments[part].squares);
    p.mean[domain] = float(joined.mean);
    p.var[domain] = float(joined.squares / joined.elements);
}

static void forward_runs(const Runs& view, const Kernels& run, const Tensors& t, const Parameters& p, bool measures) {
    const int64_t parts = view.spans * view.pieces, channels = view.shape.channels;
    Moments* moments = reinterpret_cast<Moments*>(scratch(Slot::PART_SUMS, measures ? view.domains * parts * 4 : 1));
    float* scales = scratch(Slot::COLUMN_CONSTANTS, view.domains);
    const auto measure = [&](int64_t domain, int64_t part) {
        view.with_piece(domain, part, [&](int64_t start, int64_t size) {
            moments[domain * parts + part] = run.run_moments(t.x, start, size);
        });
    };
    const auto settle = [&](int64_t domain) {
        if (measures) join_pieces(view, domain, moments + domain * parts, p);
        scales[domain] = float(p.rstd(domain));
    };
    const auto write = [&](int64_t domain, int64_t part) {
        view.with_cut(domain, part, [&](int64_t plane, int64_t start, int64_t size) {
            const float scale = scales[domain] * p.weight_of(plane % channels), shift = p.bias_of(plane % channels);
            run.apply_run(t, {p.mean + domain, &scale, &shift, nullptr, nullptr}, start, 1, size);
        });
    };
    const Steps steps{view.domains, view.shape.size(), {measures ? parts : 0, view.pieces}, view.writing(t.result)};
    steps.run([](int64_t) {}, measure, settle, write);
}

// Adds up the cuts of each of a domain's planes in its first cut, and returns their sums over the domain, weighed.
static Sums join_cuts(const Runs& view, int64_t domain, const Parameters& p, Sums* sums) {
    Sums weighed{0, 0};
    const double rstd = p.rstd(domain);
    for (int64_t i = 0; i < view.planes; ++i) {
        const int64_t plane = view.plane(domain, i);
        Sums* of = sums + plane * view.cuts;
        for (int64_t cut = 1; cut < view.cuts; ++cut) of[0].g += of[cut].g, of[0].gd += of[cut].gd;
        of[0].gd *= rstd;
        weighed.g += p.weight_of(plane % view.shape.channels) * of[0].g;
        weighed.gd += p.weight_of(plane % view.shape.channels) * of[0].gd;
    }
    return weighed;
}

// The gradients of the parameters from the sums of all planes.
static void join_planes(const Runs& view, const Sums* sums, const ParameterGradients& gradients) {
    for (int64_t c = 0; c < view.shape.channels; ++c) {
        double of_weight = 0, of_bias = 0;
        for (int64_t image = 0; image < view.shape.batch; ++image) {
            const Sums& of = sums[(image * view.shape.channels + c) * view.cuts];
            of_weight += of.gd, of_bias += of.g;
        }
        gradients.set(c, of_weight, of_bias);
    }
}

static void backward_runs(const Runs& view, const Kernels& run, const Tensors& t, const Parameters& p,
                          const ParameterGradients& gradients) {
    const Shape& s = view.shape;
    const int64_t channels = s.channels, parts = view.planes * view.cuts;
    const bool needs_sums = gradients.needs_sums(t.result);
    Sums* sums = reinterpret_cast<Sums*>(scratch(Slot::PART_SUMS, needs_sums ? view.domains * parts * 4 : 1));
    float* constants = scratch(Slot::COLUMN_CONSTANTS, view.domains * 3);  // rstd, offset and tilt of each domain
    const auto run_at = [&](int64_t domain, int64_t plane, auto body) {
        const float* of = constants + domain * 3;
        const float scale = of[0] * p.weight_of(plane % channels), shift = p.bias_of(plane % channels);
        body(Constants{p.mean + domain, &scale, &shift, of + 1, gradients.constant ? nullptr : of + 2});
    };
    const auto prepare = [&](int64_t domain) { constants[domain * 3] = float(p.rstd(domain)); };
    const auto measure = [&](int64_t domain, int64_t part) {
        view.with_cut(domain, part, [&](int64_t plane, int64_t start, int64_t size) {
            run_at(domain, plane, [&](const Constants& k) {
                sums[plane * view.cuts + part % view.cuts] = run.run_sums(t, k, start, size);
            });
        });
    };
    const auto settle = [&](int64_t domain) {
        Sums means = needs_sums ? join_cuts(view, domain, p, sums) : Sums{0, 0};
        const double rstd = p.rstd(domain), n = double(s.per_statistic());
        means = {means.g / n, means.gd / n};
        if (gradients.means) {
            const float weight = p.weight_of(domain);
            means = {double(weight) * gradients.means[domain], double(weight) * gradients.means[channels + domain]};
        }
        constants[domain * 3 + 1] = float(rstd * means.g);
        constants[domain * 3 + 2] = float(rstd * rstd * means.gd);
    };
    const auto write = [&](int64_t domain, int64_t part) {
        view.with_cut(domain, part, [&](int64_t plane, int64_t start, int64_t size) {
            run_at(domain, plane, [&](const Constants& k) { run.run_gradient(t, k, start, 1, size); });
        });
    };
    const Steps steps{view.domains, s.size(), view.writing(needs_sums), view.writing(t.result || t.dresidual)};
    steps.run(prepare, measure, settle, write);
    if (gradients.wanted()) join_planes(view, sums, gradients);
}

template <class A> static Shape shape_of(const A& a) {
    return {a.batch, int(a.channels), a.pixels, a.groups, bool(a.planar)};
}

template <class A> static Tensors tensors_of(const A& a) {
    const void* residual = a.residual;
    const bool after = a.residual_after;
    return {a.x,     nullptr, after ? nullptr : residual, after ? residual : nullptr,
            nullptr, nullptr, Activation(a.activation),   float(a.negative_slope)};
}

// x, y: (batch, channels, pixels) or (batch, pixels, channels); y null: the statistics are all that is wanted. mean, var:
// written, or read where constant.
KILN_FUNCTION(norm_act_forward,
              Pointer x, mean, var; Optional weight, bias, residual, y;
              Integer dtype, batch; Size channels; Integer pixels, groups, planar, constant, activation, residual_after;
              Real eps, negative_slope;) {
    const auto& a = arguments;
    const Shape shape = shape_of(a);
    const Kernels run = kernels_for(Dtype(a.dtype), Activation(a.activation));
    const Parameters p{a.weight, a.bias, a.mean, a.var, a.eps};
    Tensors t = tensors_of(a);
    t.result = a.y;
    if (Columns::fits(shape)) return forward_columns(Columns(shape), run, t, p, !a.constant);
    forward_runs(Runs(shape), run, t, p, !a.constant);
}

// Gradients are null where not needed. means: (2, channels) float32, or null.
KILN_FUNCTION(norm_act_backward,
              Pointer grad, x, mean, var; Optional weight, bias, residual, means, dx, dweight, dbias, dresidual;
              Integer dtype, batch; Size channels; Integer pixels, groups, planar, constant, activation, residual_after;
              Real eps, negative_slope;) {
    const auto& a = arguments;
    const Shape shape = shape_of(a);
    const Kernels run = kernels_for(Dtype(a.dtype), Activation(a.activation));
    const Parameters p{a.weight, a.bias, a.mean, a.var, a.eps};
    const ParameterGradients gradients{a.dweight, a.dbias, a.means, bool(a.constant)};
    Tensors t = tensors_of(a);
    t.grad = a.grad, t.result = a.dx, t.dresidual = a.dresidual;
    if (gradients.needs_sums(t.result)) t.keep(Dtype(a.dtype));
    if (Columns::fits(shape)) return backward_columns(Columns(shape), run, t, p, gradients);
    backward_runs(Runs(shape), run, t, p, gradients);
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
