// The multilayer perceptron in C++17, with a trace of its run. No library is needed, not even one
// for safetensors: docs/traces.md walks through this file.
//
//   c++ -std=c++17 -O1 -ffp-contract=off trace.cpp -o trace
//   ./trace inputs.safetensors trace.safetensors [--norm-eps 1e-6] [--slope 0.2] [--slope-back 0.1]
//
// The inputs file holds model_input/x (N, 64), parameter/fc1.weight and so on, cotangent/output
// (N, 10), and inputs_sha256. The options plant mistakes.

#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Tensor {
    std::vector<size_t> shape;
    std::vector<float> data;
    size_t rows() const { return shape[0]; }
    size_t columns() const { return shape[1]; }
};

Tensor like(const Tensor& t) { return {t.shape, std::vector<float>(t.data.size())}; }

// -- safetensors: 8 bytes of length, a JSON header, the tensors -----------------------------------

struct File {
    std::map<std::string, Tensor> tensors;
    std::map<std::string, std::string> metadata;
};

// Just enough JSON for such a header: objects, strings, and lists of whole numbers.
class Header {
public:
    explicit Header(std::string text) : text_(std::move(text)) {}

    // Reads an object and calls member(key) in front of each value, which member has to read.
    template <class Member> void object(Member member) {
        expect('{');
        if (accept('}')) return;
        do {
            std::string key = string();
            expect(':');
            member(key);
        } while (accept(','));
        expect('}');
    }

    std::string string() {
        expect('"');
        std::string found;
        while (at() != '"') {
            char c = next();
            if (c == '\\') c = escaped();
            found += c;
        }
        ++place_;
        return found;
    }

    std::vector<size_t> numbers() {
        std::vector<size_t> found;
        expect('[');
        if (accept(']')) return found;
        do {
            size_t n = 0;
            skip();
            if (!std::isdigit(static_cast<unsigned char>(at()))) fail("a number");
            while (std::isdigit(static_cast<unsigned char>(at()))) n = 10 * n + (next() - '0');
            found.push_back(n);
        } while (accept(','));
        expect(']');
        return found;
    }

private:
    char at() const { return place_ < text_.size() ? text_[place_] : '\0'; }

    char next() {
        if (place_ >= text_.size()) fail("more");
        return text_[place_++];
    }

    char escaped() {
        char c = next();
        if (c == 'n') return '\n';
        if (c == 't') return '\t';
        if (c == 'u') fail("a name without \\u escapes");
        return c;
    }

    void skip() {
        while (at() == ' ' || at() == '\n' || at() == '\t' || at() == '\r') ++place_;
    }

    bool accept(char c) {
        skip();
        if (at() != c) return false;
        ++place_;
        return true;
    }

    void expect(char c) {
        if (!accept(c)) fail(std::string(1, c));
    }

    [[noreturn]] void fail(const std::string& wanted) const {
        throw std::runtime_error("header: expected " + wanted + " at byte " +
                                 std::to_string(place_));
    }

    std::string text_;
    size_t place_ = 0;
};

File read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(stream)), {});
    uint64_t length = 0;
    if (bytes.size() < 8) throw std::runtime_error(path + ": not a safetensors file");
    std::memcpy(&length, bytes.data(), 8);
    if (length > bytes.size() - 8) throw std::runtime_error(path + ": cut short");
    const char* data = bytes.data() + 8 + length;
    const size_t size = bytes.size() - 8 - length;

    File file;
    Header header(std::string(bytes.data() + 8, length));
    header.object([&](const std::string& name) {
        if (name == "__metadata__") {
            header.object([&](const std::string& key) { file.metadata[key] = header.string(); });
            return;
        }
        Tensor tensor;
        std::string dtype;
        std::vector<size_t> offsets;
        header.object([&](const std::string& key) {
            if (key == "dtype") dtype = header.string();
            else if (key == "shape") tensor.shape = header.numbers();
            else offsets = header.numbers();
        });
        if (dtype != "F32") return;  // this net has no other
        size_t count = 1;
        for (size_t n : tensor.shape) count *= n;
        if (offsets.size() != 2 || offsets[1] > size || offsets[0] + 4 * count != offsets[1])
            throw std::runtime_error(path + ": wrong offsets of " + name);
        tensor.data.resize(count);
        std::memcpy(tensor.data.data(), data + offsets[0], 4 * count);
        file.tensors[name] = tensor;
    });
    return file;
}

std::string quoted(const std::string& text) {
    std::string found = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') found += '\\';
        found += c;
    }
    return found + '"';
}

// Tensors in the order in which they were recorded, which is also the order of execution.
class Trace {
public:
    void record(const std::string& name, const Tensor& value) { records_.push_back({name, value}); }

    void write(const std::string& path, const std::string& inputs_sha256) const {
        std::string tensors, order;
        size_t offset = 0;
        for (const auto& [name, value] : records_) {
            std::string shape;
            for (size_t n : value.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
            size_t end = offset + 4 * value.data.size();
            tensors += "," + quoted(name) + ":{\"dtype\":\"F32\",\"shape\":[" + shape +
                       "],\"data_offsets\":[" + std::to_string(offset) + "," +
                       std::to_string(end) + "]}";
            order += (order.empty() ? "" : ",") + quoted(name);
            offset = end;
        }
        // Every value of __metadata__ is a string: a list goes in as JSON in a string.
        std::string header = "{\"__metadata__\":{\"crosscheck.version\":\"0.1.0\",\"framework\":"
                             "\"c++\",\"inputs_sha256\":" + quoted(inputs_sha256) +
                             ",\"order\":" + quoted("[" + order + "]") + "}" + tensors + "}";
        header.append((8 - header.size() % 8) % 8, ' ');
        const uint64_t length = header.size();

        std::ofstream stream(path, std::ios::binary);
        stream.write(reinterpret_cast<const char*>(&length), 8);  // on a little-endian machine
        stream.write(header.data(), header.size());
        for (const auto& [name, value] : records_)
            stream.write(reinterpret_cast<const char*>(value.data.data()), 4 * value.data.size());
        if (!stream.flush()) throw std::runtime_error("cannot write " + path);
    }

private:
    std::vector<std::pair<std::string, Tensor>> records_;
};

// -- the layers ------------------------------------------------------------------------------------

struct Linear {  // y = x Wᵀ + b, with W stored as (out, in)
    Tensor weight, bias;
    Tensor x{}, weight_gradient{}, bias_gradient{};

    Tensor forward(const Tensor& input) {
        x = input;
        const size_t n = x.rows(), in = x.columns(), out = weight.rows();
        Tensor y{{n, out}, std::vector<float>(n * out)};
        for (size_t i = 0; i < n; ++i)
            for (size_t o = 0; o < out; ++o) {
                float sum = 0;
                for (size_t k = 0; k < in; ++k) sum += x.data[i * in + k] * weight.data[o * in + k];
                y.data[i * out + o] = sum + bias.data[o];
            }
        return y;
    }

    Tensor backward(const Tensor& dy) {
        const size_t n = x.rows(), in = x.columns(), out = weight.rows();
        Tensor dx = like(x);
        weight_gradient = like(weight);
        bias_gradient = like(bias);
        for (size_t i = 0; i < n; ++i)
            for (size_t o = 0; o < out; ++o) {
                const float d = dy.data[i * out + o];
                bias_gradient.data[o] += d;
                for (size_t k = 0; k < in; ++k) {
                    weight_gradient.data[o * in + k] += d * x.data[i * in + k];
                    dx.data[i * in + k] += d * weight.data[o * in + k];
                }
            }
        return dx;
    }
};

struct LayerNorm {  // statistics over the last axis (Ba, Kiros, Hinton, 2016)
    Tensor weight, bias;
    Tensor normal{}, weight_gradient{}, bias_gradient{};
    std::vector<float> inverse{};  // 1 / standard deviation, for each row
    float eps = 1e-5f;

    Tensor forward(const Tensor& x) {
        const size_t n = x.rows(), c = x.columns();
        Tensor y = like(x);
        normal = like(x);
        inverse.assign(n, 0);
        for (size_t i = 0; i < n; ++i) {
            const float* row = &x.data[i * c];
            float mean = 0, variance = 0;
            for (size_t k = 0; k < c; ++k) mean += row[k] / c;
            for (size_t k = 0; k < c; ++k) variance += (row[k] - mean) * (row[k] - mean) / c;
            inverse[i] = 1 / std::sqrt(variance + eps);
            for (size_t k = 0; k < c; ++k) {
                normal.data[i * c + k] = (row[k] - mean) * inverse[i];
                y.data[i * c + k] = normal.data[i * c + k] * weight.data[k] + bias.data[k];
            }
        }
        return y;
    }

    Tensor backward(const Tensor& dy) {
        const size_t n = dy.rows(), c = dy.columns();
        Tensor dx = like(dy);
        weight_gradient = like(weight);
        bias_gradient = like(bias);
        for (size_t i = 0; i < n; ++i) {
            const float *d = &dy.data[i * c], *hat = &normal.data[i * c];
            float mean = 0, slope = 0;  // of d·weight, and of d·weight·hat
            for (size_t k = 0; k < c; ++k) {
                weight_gradient.data[k] += d[k] * hat[k];
                bias_gradient.data[k] += d[k];
                mean += d[k] * weight.data[k] / c;
                slope += d[k] * weight.data[k] * hat[k] / c;
            }
            for (size_t k = 0; k < c; ++k)
                dx.data[i * c + k] = (d[k] * weight.data[k] - mean - hat[k] * slope) * inverse[i];
        }
        return dx;
    }
};

struct LeakyReLU {
    Tensor x;
    float slope = 0.01f, slope_back = 0.01f;

    Tensor forward(const Tensor& input) {
        x = input;
        Tensor y = x;
        for (float& v : y.data) v = v > 0 ? v : slope * v;
        return y;
    }

    Tensor backward(Tensor dy) const {
        for (size_t i = 0; i < dy.data.size(); ++i)
            if (x.data[i] <= 0) dy.data[i] *= slope_back;
        return dy;
    }
};

struct Hardswish {  // x · min(max(x + 3, 0), 6) / 6
    Tensor x;

    Tensor forward(const Tensor& input) {
        x = input;
        Tensor y = x;
        for (float& v : y.data) v = v * std::fmin(std::fmax(v + 3, 0.0f), 6.0f) / 6;
        return y;
    }

    Tensor backward(Tensor dy) const {
        for (size_t i = 0; i < dy.data.size(); ++i) {
            const float v = x.data[i];
            dy.data[i] *= v < -3 ? 0 : v > 3 ? 1 : v / 3 + 0.5f;
        }
        return dy;
    }
};

// -- the net and its trace -------------------------------------------------------------------------

int run(int argc, char** argv) {
    if (argc < 3) throw std::runtime_error("usage: trace INPUTS TRACE [--norm-eps E] ...");
    File inputs = read(argv[1]);
    auto tensor = [&](const std::string& name) {
        if (!inputs.tensors.count(name)) throw std::runtime_error("the inputs lack " + name);
        return inputs.tensors[name];
    };
    auto linear = [&](const std::string& name) {
        return Linear{tensor("parameter/" + name + ".weight"), tensor("parameter/" + name + ".bias")};
    };
    Linear fc1 = linear("fc1"), fc2 = linear("fc2"), fc3 = linear("fc3");
    LayerNorm norm{tensor("parameter/norm.weight"), tensor("parameter/norm.bias")};
    LeakyReLU act1;
    Hardswish act2;
    for (int i = 3; i + 1 < argc; i += 2) {
        const std::string option = argv[i];
        const float value = std::stof(argv[i + 1]);
        if (option == "--norm-eps") norm.eps = value;
        else if (option == "--slope") act1.slope = act1.slope_back = value;
        else if (option == "--slope-back") act1.slope_back = value;
        else throw std::runtime_error("unknown option " + option);
    }

    Trace trace;
    auto seen = [&](const std::string& name, const Tensor& value) {
        trace.record(name, value);
        return value;
    };
    Tensor x = seen("activation/input:x", tensor("model_input/x"));
    x = seen("activation/fc1", fc1.forward(x));
    x = seen("activation/norm", norm.forward(x));
    x = seen("activation/act1", act1.forward(x));
    x = seen("activation/fc2", fc2.forward(x));
    x = seen("activation/act2", act2.forward(x));
    x = seen("activation/fc3", fc3.forward(x));
    seen("activation/output", x);

    // The cotangent at a site is the gradient of the loss with respect to what the layer returned.
    Tensor d = seen("cotangent/output", tensor("cotangent/output"));
    seen("cotangent/fc3", d);
    d = seen("cotangent/act2", fc3.backward(d));
    d = seen("cotangent/fc2", act2.backward(d));
    d = seen("cotangent/act1", fc2.backward(d));
    d = seen("cotangent/norm", act1.backward(d));
    d = seen("cotangent/fc1", norm.backward(d));
    seen("cotangent/input:x", fc1.backward(d));

    auto gradients = [&](const std::string& name, const auto& layer) {
        seen("gradient/" + name + ".weight", layer.weight_gradient);
        seen("gradient/" + name + ".bias", layer.bias_gradient);
    };
    gradients("fc1", fc1);
    gradients("norm", norm);
    gradients("fc2", fc2);
    gradients("fc3", fc3);
    trace.write(argv[2], inputs.metadata["inputs_sha256"]);
    return 0;
}

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception& error) {
        std::cerr << "trace: " << error.what() << '\n';
        return 1;
    }
}
