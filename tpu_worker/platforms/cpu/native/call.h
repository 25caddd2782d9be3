// What the kernels use of XLA's custom calls, on its C interface: the C++ wrapper that XLA ships takes longer to compile than all the
// kernels together, and they are compiled when the engine first starts.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

#include "xla/ffi/api/c_api.h"

namespace twodeep {

// Why a call cannot be carried out. The message is a literal.
struct Refusal {
  const char* message;
};

template <class T>
constexpr XLA_FFI_DataType kDataType = XLA_FFI_DataType_INVALID;
template <>
inline constexpr XLA_FFI_DataType kDataType<float> = XLA_FFI_DataType_F32;
template <>
inline constexpr XLA_FFI_DataType kDataType<int32_t> = XLA_FFI_DataType_S32;
template <>
inline constexpr XLA_FFI_DataType kDataType<uint32_t> = XLA_FFI_DataType_U32;
template <>
inline constexpr XLA_FFI_DataType kDataType<uint16_t> = XLA_FFI_DataType_U16;
template <>
inline constexpr XLA_FFI_DataType kDataType<uint8_t> = XLA_FFI_DataType_U8;
template <>
inline constexpr XLA_FFI_DataType kDataType<bool> = XLA_FFI_DataType_PRED;

// An array of the caller's.
class Buffer {
 public:
  explicit Buffer(void* buffer) : buffer_(static_cast<const XLA_FFI_Buffer*>(buffer)) {}

  template <class T>
  bool holds() const {
    return buffer_->dtype == kDataType<T>;
  }
  template <class T>
  T* data() const {
    if (!holds<T>()) throw Refusal{"an array of the wrong type"};
    return static_cast<T*>(buffer_->data);
  }
  // The data, or null if there is none: how an operand that is not given is passed.
  template <class T>
  T* data_if_any() const {
    return size() ? data<T>() : nullptr;
  }
  int rank() const { return static_cast<int>(buffer_->rank); }
  int64_t dim(int i) const {
    if (i >= rank()) throw Refusal{"an array of the wrong rank"};
    return buffer_->dims[i];
  }
  int64_t size() const {
    int64_t size = 1;
    for (int i = 0; i < rank(); ++i) size *= buffer_->dims[i];
    return size;
  }

 private:
  const XLA_FFI_Buffer* buffer_;
};

// XLA's own threads.
class Pool {
 public:
  Pool(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context) : api_(api), context_(context) {}

  int num_threads() const {
    int64_t threads = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, context_, &threads};
    if (XLA_FFI_Error* error = api_->XLA_FFI_ThreadPool_NumThreads(&args)) destroy(error);
    return static_cast<int>(threads);
  }
  // Runs a copy of `work` on one of the threads.
  template <class Work>
  void schedule(const Work& work) const {
    auto* copy = new Work(work);
    XLA_FFI_Task* task = [](void* data) {
      auto* mine = static_cast<Work*>(data);
      (*mine)();
      delete mine;
    };
    XLA_FFI_ThreadPool_Schedule_Args args{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, context_, task, copy};
    if (XLA_FFI_Error* error = api_->XLA_FFI_ThreadPool_Schedule(&args)) {
      destroy(error);
      task(copy);
    }
  }

 private:
  void destroy(XLA_FFI_Error* error) const {
    XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
    api_->XLA_FFI_Error_Destroy(&args);
  }
  const XLA_FFI_Api* api_;
  XLA_FFI_ExecutionContext* context_;
};

// One call: operands and results by index, attributes by name.
class Call {
 public:
  explicit Call(const XLA_FFI_CallFrame* frame) : frame_(frame) {}

  Buffer operand(int i) const {
    if (i >= frame_->args.size) throw Refusal{"too few operands"};
    return Buffer(frame_->args.args[i]);
  }
  Buffer result(int i) const {
    if (i >= frame_->rets.size) throw Refusal{"too few results"};
    return Buffer(frame_->rets.rets[i]);
  }
  template <class T>
  T attribute(const char* name) const {
    const XLA_FFI_Attrs& all = frame_->attrs;
    for (int64_t i = 0; i < all.size; ++i) {
      if (all.names[i]->len != std::strlen(name) || std::memcmp(all.names[i]->ptr, name, all.names[i]->len) != 0) continue;
      const auto* scalar = static_cast<const XLA_FFI_Scalar*>(all.attrs[i]);
      if (all.types[i] != XLA_FFI_AttrType_SCALAR || scalar->dtype != kDataType<T>) throw Refusal{"an attribute of the wrong type"};
      return *static_cast<const T*>(scalar->value);
    }
    throw Refusal{"an attribute is missing"};
  }
  Pool pool() const { return Pool(frame_->api, frame_->ctx); }

 private:
  const XLA_FFI_CallFrame* frame_;
};

// What a registered symbol does with a call frame: answers XLA's question about versions, or runs `body` and reports what it throws.
inline XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame, void (*body)(const Call&)) {
  const auto* extension = frame->extension_start;  // whose type has another name from JAX 0.12 on
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = reinterpret_cast<const XLA_FFI_Metadata_Extension*>(extension)->metadata;
    metadata->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    metadata->traits = 0;
    return nullptr;
  }
  XLA_FFI_Error_Create_Args failure{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, nullptr, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  try {
    body(Call(frame));
    return nullptr;
  } catch (const Refusal& refusal) {
    failure.message = refusal.message;
  } catch (const std::bad_alloc&) {
    failure.message = "out of memory for a kernel's working space";
    failure.errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED;
  }
  return frame->api->XLA_FFI_Error_Create(&failure);
}

}  // namespace twodeep
