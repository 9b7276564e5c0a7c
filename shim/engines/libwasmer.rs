//! What the shim needs of wasmer and the C API lacks: `scripts/build-wasmer` adds this to the crate.

use crate::error::update_last_error;
use crate::wasm_c_api::engine::wasm_engine_t;
use crate::wasm_c_api::externals::{wasm_extern_t, wasm_func_t};
use crate::wasm_c_api::module::wasm_module_t;
use crate::wasm_c_api::store::wasm_store_t;
use crate::wasm_c_api::types::wasm_functype_t;
use crate::wasm_c_api::unstable::features::wasmer_features_t;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use wasmer_api::sys::{CompilerConfig, Cranelift, EngineBuilder, vm};
use wasmer_api::{Function, Module, Value};

const SLOTS: usize = 16;

/// Sets how much stack, in bytes, a guest has. It is 1 MiB otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn pywasm_set_stack_size(bytes: usize) {
    vm::set_stack_size(bytes);
}

/// Makes an engine of cranelift whose artifacts are ELF images, which can be mapped.
#[unsafe(no_mangle)]
pub extern "C" fn pywasm_engine_new(features: Box<wasmer_features_t>) -> Box<wasm_engine_t> {
    let mut cranelift = Cranelift::new();
    cranelift.experimental_artifact(true);
    let compiler: Box<dyn CompilerConfig> = Box::new(cranelift);
    let builder = EngineBuilder::new(compiler).set_features(Some(features.inner));
    Box::new(wasm_engine_t { inner: builder.engine().into() })
}

/// Loads an artifact from a file, which is mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pywasm_module_deserialize_file(
    store: &wasm_store_t,
    path: *const c_char,
) -> Option<Box<wasm_module_t>> {
    let path = OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes());
    let store = unsafe { store.inner.store() };
    match unsafe { Module::deserialize_from_file(&store, path) } {
        Ok(inner) => Some(Box::new(wasm_module_t { inner })),
        Err(error) => {
            update_last_error(error);
            None
        }
    }
}

/// Makes a host function of integers that is called with one array: arguments, then the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pywasm_func_new(
    store: &mut wasm_store_t,
    kind: &wasm_functype_t,
    callback: unsafe extern "C" fn(slots: *mut i64),
) -> Box<wasm_func_t> {
    let function_type = &kind.inner().function_type;
    assert!(function_type.params().len() <= SLOTS);
    let returns = !function_type.results().is_empty();
    let mut store_mut = unsafe { store.inner.store_mut() };
    let function = Function::new(&mut store_mut, function_type, move |arguments| {
        let mut slots = [0; SLOTS];
        for (slot, value) in slots.iter_mut().zip(arguments) {
            *slot = match value {
                Value::I32(number) => i64::from(*number),
                Value::I64(number) => *number,
                _ => unreachable!("checked where it was linked"),
            };
        }
        unsafe { callback(slots.as_mut_ptr()) };
        Ok(if returns { vec![Value::I32(slots[0] as i32)] } else { vec![] })
    });
    Box::new(wasm_func_t { extern_: wasm_extern_t::new(store.inner.clone(), function.into()) })
}
