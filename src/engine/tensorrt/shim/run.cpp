// Engines and their runs.
#include "inner.h"

extern "C" {

int32_t trt_engine_new(TrtLibrary* library, void const* data, size_t size, TrtEngine** engine, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        if (library->createRuntime == nullptr) {
            return fail(message, "this TensorRT library builds engines but does not run them");
        }
        auto const refused = [&](char const* what) {
            std::string const why = library->logger.taken();
            return fail(message, "%s: %s", what, why.empty() ? "refused without a reason" : why.c_str());
        };
        library->logger.taken();
        auto made = std::make_unique<TrtEngine>();
        made->library = library;
        void* const runtime = library->createRuntime(&library->logger, NV_TENSORRT_VERSION);
        if (!isObject(runtime)) {
            return refused("createInferRuntime");
        }
        made->runtime.reset(static_cast<IRuntime*>(runtime));
        made->engine.reset(made->runtime->deserializeCudaEngine(data, size));
        if (!made->engine) {
            return refused("deserializeCudaEngine");
        }
        made->context.reset(made->engine->createExecutionContext());
        if (!made->context) {
            return refused("createExecutionContext");
        }
        *engine = made.release();
        return 0;
    });
}

void trt_engine_delete(TrtEngine* engine)
{
    delete engine;
}

int32_t trt_engine_tensors(TrtEngine const* engine)
{
    return engine->engine->getNbIOTensors();
}

int32_t trt_engine_tensor(TrtEngine const* engine, int32_t index, char const** name, int32_t* is_input, int32_t* dtype,
    int32_t* rank, int64_t* shape, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        *name = engine->engine->getIOTensorName(index);
        if (*name == nullptr) {
            return fail(message, "tensor %d: there is none", index);
        }
        *is_input = engine->engine->getTensorIOMode(*name) == TensorIOMode::kINPUT ? 1 : 0;
        *dtype = static_cast<int32_t>(engine->engine->getTensorDataType(*name));
        return fromDims(engine->engine->getTensorShape(*name), rank, shape);
    });
}

int32_t trt_engine_bind(TrtEngine* engine, char const* name, uint64_t address, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        if (!engine->context->setTensorAddress(name, reinterpret_cast<void*>(static_cast<uintptr_t>(address)))) {
            std::string const why = engine->library->logger.taken();
            return fail(message, "setTensorAddress(%s): %s", name, why.c_str());
        }
        return 0;
    });
}

int32_t trt_engine_enqueue(TrtEngine* engine, void* stream, TrtMessage* message)
{
    return guarded(message, [&]() -> int32_t {
        if (!engine->context->enqueueV3(static_cast<cudaStream_t>(stream))) {
            std::string const why = engine->library->logger.taken();
            return fail(message, "enqueueV3: %s", why.c_str());
        }
        return 0;
    });
}
}
