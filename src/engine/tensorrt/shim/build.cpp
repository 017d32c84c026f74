// The library, networks and their building.
#include "inner.h"

namespace {

class Monitor : public IProgressMonitor {
public:
    Monitor(TrtProgress progress, void* user) : mProgress(progress), mUser(user) {}

    void phaseStart(char const* phase, char const* parent, int32_t steps) noexcept override
    {
        if (parent == nullptr && phase != nullptr) {
            std::snprintf(mPhase, sizeof mPhase, "%s", phase);
            mSteps = steps;
        }
        report(phase, 0);
    }
    bool stepComplete(char const* phase, int32_t step) noexcept override { return report(phase, step + 1); }
    void phaseFinish(char const*) noexcept override {}

private:
    // Only the outermost phase: inner ones come and go many times.
    bool report(char const* phase, int32_t step) noexcept
    {
        if (mProgress == nullptr || phase == nullptr || std::strcmp(phase, mPhase) != 0) {
            return true;
        }
        return mProgress(mUser, phase, step, mSteps) != 0;
    }

    TrtProgress mProgress;
    void* mUser;
    char mPhase[128] = {};
    int32_t mSteps = 0;
};

} // namespace

// Runs `call` on tensor `x` if there is one.
#define WITH(x)                                                                                                        \
    ITensor* const x##_ = b->at(x);                                                                                    \
    if (x##_ == nullptr) {                                                                                             \
        return fail(message, "tensor %d: there is none", x);                                                           \
    }

extern "C" {

int32_t trt_header_version()
{
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

int32_t trt_header_major()
{
    return NV_TENSORRT_MAJOR;
}

int32_t trt_header_is_rtx()
{
    return SHIM_RTX;
}

int32_t trt_open(char const* path, TrtLog log, void* user, TrtLibrary** library, int32_t* version, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        auto opened = std::make_unique<TrtLibrary>();
        opened->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (opened->handle == nullptr) {
            char const* const why = dlerror();
            return fail(message, "%s", why == nullptr ? "cannot be opened" : why);
        }
        auto const getVersion
            = reinterpret_cast<int32_t (*)() noexcept>(dlsym(opened->handle, "getInferLibVersion"));
        if (getVersion == nullptr) {
            return fail(message, "%s: no TensorRT library: it has no getInferLibVersion", path);
        }
        // Before any other call: nothing else of another major version may be touched.
        *version = getVersion();
        if (*version / 10000 != NV_TENSORRT_MAJOR) {
            return fail(message, "%s: version %d.%d, but this program was built with the headers of version %d.%d", path,
                *version / 10000, *version / 100 % 100, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
        }
#if SHIM_RTX
        // Tried: the tables of virtual functions changed between 1.4 and 1.5, and not from there to 1.7.
        if ((*version / 100 % 100 < 5) != (NV_TENSORRT_MINOR < 5)) {
            return fail(message, "%s: TensorRT-RTX %d.%d, but this program was built with the headers of %d.%d", path,
                *version / 10000, *version / 100 % 100, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
        }
#endif
        opened->createBuilder = reinterpret_cast<void* (*)(void*, int32_t) noexcept>(
            dlsym(opened->handle, "createInferBuilder_INTERNAL"));
        opened->createRuntime = reinterpret_cast<void* (*)(void*, int32_t) noexcept>(
            dlsym(opened->handle, "createInferRuntime_INTERNAL"));
        if (opened->createBuilder == nullptr && opened->createRuntime == nullptr) {
            return fail(message, "%s: no TensorRT library: it makes neither builders nor runtimes", path);
        }
        opened->logger.sink = log;
        opened->logger.user = user;
        *library = opened.release();
        return 0;
    });
}

void trt_close(TrtLibrary* library)
{
    delete library;
}

int32_t trt_build_new(TrtLibrary* library, TrtBuild** build, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        if (library->createBuilder == nullptr) {
            return fail(message, "this TensorRT library runs engines but does not build them");
        }
        library->logger.taken();
        auto made = std::make_unique<TrtBuild>();
        made->library = library;
        void* const builder = library->createBuilder(&library->logger, NV_TENSORRT_VERSION);
        if (!isObject(builder)) {
            return made->refused("createInferBuilder", message);
        }
        made->builder.reset(static_cast<IBuilder*>(builder));
        made->network.reset(made->builder->createNetworkV2(
            1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)));
        made->config.reset(made->builder->createBuilderConfig());
        if (!made->network || !made->config) {
            return made->refused("createNetworkV2", message);
        }
        *build = made.release();
        return 0;
    });
}

void trt_build_delete(TrtBuild* build)
{
    delete build;
}

int32_t trt_input(TrtBuild* b, char const* name, int32_t dtype, int32_t rank, int64_t const* shape, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        Dims dims{};
        if (!toDims(rank, shape, dims)) {
            return fail(message, "%s: rank %d", name, rank);
        }
        return b->add(b->network->addInput(name, static_cast<DataType>(dtype), dims), "addInput", message);
    });
}

int32_t trt_constant(TrtBuild* b, int32_t dtype, int32_t rank, int64_t const* shape, void const* data, int64_t count,
    TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        Dims dims{};
        if (!toDims(rank, shape, dims)) {
            return fail(message, "constant: rank %d", rank);
        }
        Weights const weights{static_cast<DataType>(dtype), data, count};
        return b->add(b->network->addConstant(dims, weights), "addConstant", message);
    });
}

int32_t trt_cast(TrtBuild* b, int32_t x, int32_t dtype, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        return b->add(b->network->addCast(*x_, static_cast<DataType>(dtype)), "addCast", message);
    });
}

int32_t trt_matmul(TrtBuild* b, int32_t x, int32_t y, int32_t transpose_y, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        WITH(y)
        auto const how = transpose_y != 0 ? MatrixOperation::kTRANSPOSE : MatrixOperation::kNONE;
        return b->add(
            b->network->addMatrixMultiply(*x_, MatrixOperation::kNONE, *y_, how), "addMatrixMultiply", message);
    });
}

int32_t trt_elementwise(TrtBuild* b, int32_t operation, int32_t x, int32_t y, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        WITH(y)
        return b->add(b->network->addElementWise(*x_, *y_, static_cast<ElementWiseOperation>(operation)),
            "addElementWise", message);
    });
}

int32_t trt_unary(TrtBuild* b, int32_t operation, int32_t x, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        return b->add(b->network->addUnary(*x_, static_cast<UnaryOperation>(operation)), "addUnary", message);
    });
}

int32_t trt_gelu_tanh(TrtBuild* b, int32_t x, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        return b->add(b->network->addActivation(*x_, ActivationType::kGELU_TANH), "addActivation", message);
    });
}

int32_t trt_mean_last(TrtBuild* b, int32_t x, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        uint32_t const last = 1U << static_cast<uint32_t>(x_->getDimensions().nbDims - 1);
        return b->add(b->network->addReduce(*x_, ReduceOperation::kAVG, last, true), "addReduce", message);
    });
}

int32_t trt_softmax_last(TrtBuild* b, int32_t x, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        ISoftMaxLayer* const layer = b->network->addSoftMax(*x_);
        if (layer != nullptr) {
            layer->setAxes(1U << static_cast<uint32_t>(x_->getDimensions().nbDims - 1));
        }
        return b->add(layer, "addSoftMax", message);
    });
}

int32_t trt_reshape(TrtBuild* b, int32_t x, int32_t rank, int64_t const* shape, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        Dims dims{};
        if (!toDims(rank, shape, dims)) {
            return fail(message, "reshape: rank %d", rank);
        }
        IShuffleLayer* const layer = b->network->addShuffle(*x_);
        if (layer != nullptr) {
            layer->setReshapeDimensions(dims);
        }
        return b->add(layer, "addShuffle", message);
    });
}

int32_t trt_transpose(TrtBuild* b, int32_t x, int32_t rank, int32_t const* order, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        if (rank < 0 || rank > Dims::MAX_DIMS) {
            return fail(message, "transpose: rank %d", rank);
        }
        Permutation permutation{};
        for (int32_t i = 0; i < rank; ++i) {
            permutation.order[i] = order[i];
        }
        IShuffleLayer* const layer = b->network->addShuffle(*x_);
        if (layer != nullptr) {
            layer->setFirstTranspose(permutation);
        }
        return b->add(layer, "addShuffle", message);
    });
}

int32_t trt_slice(TrtBuild* b, int32_t x, int32_t rank, int64_t const* start, int64_t const* size, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        Dims from{}, extent{}, stride{};
        if (!toDims(rank, start, from) || !toDims(rank, size, extent)) {
            return fail(message, "slice: rank %d", rank);
        }
        stride.nbDims = rank;
        for (int32_t i = 0; i < rank; ++i) {
            stride.d[i] = 1;
        }
        return b->add(b->network->addSlice(*x_, from, extent, stride), "addSlice", message);
    });
}

int32_t trt_concat(TrtBuild* b, int32_t const* parts, int32_t count, int32_t axis, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        std::vector<ITensor*> tensors;
        for (int32_t i = 0; i < count; ++i) {
            int32_t const part = parts[i];
            WITH(part)
            tensors.push_back(part_);
        }
        IConcatenationLayer* const layer = b->network->addConcatenation(tensors.data(), count);
        if (layer != nullptr) {
            layer->setAxis(axis);
        }
        return b->add(layer, "addConcatenation", message);
    });
}

int32_t trt_quantize(TrtBuild* b, int32_t x, int32_t scale, int32_t axis, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        WITH(scale)
        IQuantizeLayer* const layer = b->network->addQuantize(*x_, *scale_, DataType::kFP8);
        if (layer != nullptr && axis >= 0) {
            layer->setAxis(axis);
        }
        return b->add(layer, "addQuantize", message);
    });
}

int32_t trt_dequantize(TrtBuild* b, int32_t x, int32_t scale, int32_t axis, int32_t dtype, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        WITH(scale)
        IDequantizeLayer* const layer = b->network->addDequantize(*x_, *scale_, static_cast<DataType>(dtype));
        if (layer != nullptr && axis >= 0) {
            layer->setAxis(axis);
        }
        return b->add(layer, "addDequantize", message);
    });
}

int32_t trt_output(TrtBuild* b, int32_t x, char const* name, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        x_->setName(name);
        b->network->markOutput(*x_);
        return 0;
    });
}

int32_t trt_describe(TrtBuild* b, int32_t x, int32_t* dtype, int32_t* rank, int64_t* shape, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        WITH(x)
        Dims const dims = x_->getDimensions();
        if (dims.nbDims < 0) {
            return b->refused("getDimensions", message);
        }
        *dtype = static_cast<int32_t>(x_->getType());
        return fromDims(dims, rank, shape);
    });
}

int32_t trt_set_compute_capability(TrtBuild* b, int32_t capability, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
#if SHIM_RTX
        if (!b->config->setNbComputeCapabilities(1)
            || !b->config->setComputeCapability(static_cast<ComputeCapability>(capability), 0)) {
            return b->refused("setComputeCapability", message);
        }
        return 0;
#else
        (void) b;
        (void) capability;
        return fail(message, "TensorRT builds for the present GPU only; TensorRT-RTX builds for others");
#endif
    });
}

int32_t trt_set_timing_cache(TrtBuild* b, void const* data, size_t size, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
#if SHIM_RTX
        (void) b;
        (void) data;
        (void) size;
        return 0;
#else
        b->timing.reset(b->config->createTimingCache(data, size));
        // A cache of another version or GPU: begin anew.
        if (!b->timing || !b->config->setTimingCache(*b->timing, false)) {
            b->library->logger.taken();
            b->timing.reset(b->config->createTimingCache(nullptr, 0));
            if (!b->timing || !b->config->setTimingCache(*b->timing, false)) {
                return b->refused("setTimingCache", message);
            }
        }
        return 0;
#endif
    });
}

int32_t trt_build(TrtBuild* b, TrtProgress progress, void* user, TrtPlan** plan, TrtPlan** cache, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        b->library->logger.taken();
        Monitor monitor(progress, user);
        b->config->setProgressMonitor(&monitor);
        auto built = std::make_unique<TrtPlan>();
        built->memory.reset(b->builder->buildSerializedNetwork(*b->network, *b->config));
        b->config->setProgressMonitor(nullptr);
        if (!built->memory) {
            return b->refused("buildSerializedNetwork", message);
        }
        *cache = nullptr;
#if !SHIM_RTX
        if (b->timing) {
            auto timing = std::make_unique<TrtPlan>();
            timing->memory.reset(b->timing->serialize());
            if (timing->memory) {
                *cache = timing.release();
            }
        }
#endif
        *plan = built.release();
        return 0;
    });
}

void const* trt_plan_data(TrtPlan const* plan, size_t* size)
{
    *size = plan->memory->size();
    return plan->memory->data();
}

void trt_plan_delete(TrtPlan* plan)
{
    delete plan;
}
}
