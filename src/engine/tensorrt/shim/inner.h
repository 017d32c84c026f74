// What both halves of the shim share: messages, the logger, and what is behind the opaque handles.
#pragma once
#include "shim.h"

#include <NvInfer.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#if defined(TRT_MAJOR_RTX)
#define SHIM_RTX 1
#else
#define SHIM_RTX 0
#endif

namespace shim {

using namespace nvinfer1;

inline int32_t fail(TrtMessage* message, char const* format, ...)
{
    if (message != nullptr) {
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(message->text, sizeof message->text, format, arguments);
        va_end(arguments);
    }
    return -1;
}

// Keeps the last error for the caller's message, and hands everything on.
class Logger : public ILogger {
public:
    TrtLog sink = nullptr;
    void* user = nullptr;

    void log(Severity severity, char const* text) noexcept override
    {
        if (text == nullptr) {
            return;
        }
        try {
            std::lock_guard<std::mutex> guard(mLock);
            if (severity <= Severity::kERROR && mError.empty()) {
                mError = text;
            }
        } catch (...) {
        }
        if (sink != nullptr) {
            sink(user, static_cast<int32_t>(severity), text);
        }
    }

    // The first error since this was last called: the first says why, later ones only where it led.
    std::string taken()
    {
        std::lock_guard<std::mutex> guard(mLock);
        std::string error;
        error.swap(mError);
        return error;
    }

private:
    std::mutex mLock;
    std::string mError;
};

// Runs `work`; whatever it throws becomes a message.
template <typename Work>
int32_t guarded(TrtMessage* message, Work work) noexcept
{
    try {
        return work();
    } catch (std::exception const& e) {
        return fail(message, "%s", e.what());
    } catch (...) {
        return fail(message, "an exception of unknown type");
    }
}

// Without a GPU some versions return a small number instead of an object or null.
inline bool isObject(void const* object)
{
    auto const address = reinterpret_cast<uintptr_t>(object);
    return address >= 65536 && address % alignof(void*) == 0;
}

inline bool toDims(int32_t rank, int64_t const* shape, Dims& dims)
{
    if (rank < 0 || rank > Dims::MAX_DIMS) {
        return false;
    }
    dims.nbDims = rank;
    for (int32_t i = 0; i < rank; ++i) {
        dims.d[i] = shape[i];
    }
    return true;
}

inline int32_t fromDims(Dims const& dims, int32_t* rank, int64_t* shape)
{
    *rank = dims.nbDims;
    for (int32_t i = 0; i < dims.nbDims && i < Dims::MAX_DIMS; ++i) {
        shape[i] = dims.d[i];
    }
    return 0;
}

} // namespace shim

using namespace shim;

struct TrtLibrary {
    void* handle = nullptr;
    Logger logger;
    void* (*createBuilder)(void*, int32_t) noexcept = nullptr;
    void* (*createRuntime)(void*, int32_t) noexcept = nullptr;

    ~TrtLibrary()
    {
        if (handle != nullptr) {
            dlclose(handle);
        }
    }
};

struct TrtBuild {
    TrtLibrary* library = nullptr;
#if !SHIM_RTX
    std::unique_ptr<ITimingCache> timing; // outlives the builder
#endif
    std::unique_ptr<IBuilder> builder;
    std::unique_ptr<INetworkDefinition> network;
    std::unique_ptr<IBuilderConfig> config;
    std::vector<ITensor*> tensors;

    // Adds what `layer` gives, or says why there is no layer.
    int32_t add(ILayer* layer, char const* what, TrtMessage* message)
    {
        return layer == nullptr ? refused(what, message) : add(layer->getOutput(0), what, message);
    }

    int32_t add(ITensor* tensor, char const* what, TrtMessage* message)
    {
        if (tensor == nullptr) {
            return refused(what, message);
        }
        tensors.push_back(tensor);
        return static_cast<int32_t>(tensors.size() - 1);
    }

    int32_t refused(char const* what, TrtMessage* message)
    {
        std::string const why = library->logger.taken();
        return fail(message, "%s: %s", what, why.empty() ? "refused without a reason" : why.c_str());
    }

    ITensor* at(int32_t index) const
    {
        return index >= 0 && static_cast<size_t>(index) < tensors.size() ? tensors[index] : nullptr;
    }
};

struct TrtPlan {
    std::unique_ptr<IHostMemory> memory;
};

struct TrtEngine {
    TrtLibrary* library = nullptr;
    std::unique_ptr<IRuntime> runtime;
    std::unique_ptr<ICudaEngine> engine;
    std::unique_ptr<IExecutionContext> context;
};
