//! Commands and events: an object plus what the list of all commands needs to know.

use crate::attrs::{Attrs, words};
use crate::object::structure;
use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DataStruct, DeriveInput};

fn fields(input: &DeriveInput) -> syn::Result<&DataStruct> {
    match &input.data {
        Data::Struct(data) => Ok(data),
        _ => Err(syn::Error::new_spanned(input, "a command or event is a struct")),
    }
}

pub fn command(input: &DeriveInput) -> syn::Result<TokenStream> {
    let attrs = Attrs::of(&input.attrs, "command")?;
    let ident = &input.ident;
    let object = structure(input, fields(input)?, &Attrs::of(&input.attrs, "qapi")?)?;
    let name = attrs.name.clone().unwrap_or_else(|| words(&ident.to_string()).join("-"));
    let reply = attrs.reply.as_ref().map_or_else(|| quote!(()), |reply| quote!(#reply));
    let Attrs { doc, oob, preconfig, features, .. } = &attrs;
    Ok(quote! {
        #object
        #[automatically_derived]
        impl ::qapi::Command for #ident {
            type Reply = #reply;
            const INFO: ::qapi::CommandInfo = ::qapi::CommandInfo {
                name: #name,
                doc: #doc,
                allow_oob: #oob,
                allow_preconfig: #preconfig,
                features: &[#(#features),*],
            };
        }
    })
}

pub fn event(input: &DeriveInput) -> syn::Result<TokenStream> {
    let attrs = Attrs::of(&input.attrs, "event")?;
    let ident = &input.ident;
    let object = structure(input, fields(input)?, &Attrs::of(&input.attrs, "qapi")?)?;
    let name = attrs.name.clone().unwrap_or_else(|| words(&ident.to_string()).join("_").to_uppercase());
    let Attrs { doc, features, .. } = &attrs;
    let throttle = match &attrs.throttle {
        Some(keys) => quote!(Some(&[#(#keys),*])),
        None => quote!(None),
    };
    Ok(quote! {
        #object
        #[automatically_derived]
        impl ::qapi::Event for #ident {
            const INFO: ::qapi::EventInfo = ::qapi::EventInfo {
                name: #name,
                doc: #doc,
                throttle: #throttle,
                features: &[#(#features),*],
            };
        }
    })
}
