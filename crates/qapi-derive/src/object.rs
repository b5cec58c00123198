//! Structs: JSON objects with named members.

use crate::attrs::Attrs;
use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{DataStruct, DeriveInput, Field, Fields, GenericArgument, PathArguments, Type};

/// The four functions of `qapi::Object` as bodies, built member by member.
#[derive(Default)]
struct Parts {
    require: Vec<TokenStream>,
    take: Vec<TokenStream>,
    put: Vec<TokenStream>,
    members: Vec<TokenStream>,
}

pub fn structure(input: &DeriveInput, data: &DataStruct, attrs: &Attrs) -> syn::Result<TokenStream> {
    let mut parts = Parts::default();
    let build = match &data.fields {
        Fields::Named(fields) => {
            for field in &fields.named {
                parts.add(field, attrs)?;
            }
            let names = fields.named.iter().map(|field| &field.ident);
            quote!(Self { #(#names),* })
        }
        Fields::Unit => quote!(Self),
        Fields::Unnamed(fields) => {
            return Err(syn::Error::new_spanned(fields, "members of a QAPI object need names"));
        }
    };
    let object = object_impl(input, &parts, &build);
    let describe = describe_impl(input, attrs);
    Ok(quote!(#object #describe))
}

fn object_impl(input: &DeriveInput, parts: &Parts, build: &TokenStream) -> TokenStream {
    let ident = &input.ident;
    let Parts { require, take, put, members } = parts;
    quote! {
        #[automatically_derived]
        impl ::qapi::Object for #ident {
            fn require(fields: &::qapi::Fields) -> ::qapi::Result<()> {
                let _ = fields;
                #(#require)*
                Ok(())
            }
            fn take(fields: &mut ::qapi::Fields) -> ::qapi::Result<Self> {
                let _ = &fields;
                #(#take)*
                Ok(#build)
            }
            fn put(&self, into: &mut ::qapi::Map) {
                let _ = &into;
                #(#put)*
            }
            fn shape(book: &mut ::qapi::Book, shape: &mut ::qapi::book::Shape) {
                let _ = (&book, &shape);
                #(#members)*
            }
        }
    }
}

/// `Describe` for a type that has `Object`.
pub fn describe_impl(input: &DeriveInput, attrs: &Attrs) -> TokenStream {
    let ident = &input.ident;
    let name = attrs.name.clone().unwrap_or_else(|| ident.to_string());
    let doc = &attrs.doc;
    let features = &attrs.features;
    quote! {
        #[automatically_derived]
        impl ::qapi::Describe for #ident {
            const KIND: ::qapi::Kind = ::qapi::Kind::Object;
            fn describe(book: &mut ::qapi::Book) -> ::qapi::book::TypeId {
                book.object::<Self>(#name, #doc, &[#(#features),*])
            }
            fn read(value: ::qapi::Value, at: &::qapi::At) -> ::qapi::Result<Self> {
                ::qapi::read_object(value, at)
            }
            fn write(&self) -> ::qapi::Value {
                ::qapi::write_object(self)
            }
        }
    }
}

impl Parts {
    fn add(&mut self, field: &Field, outer: &Attrs) -> syn::Result<()> {
        let attrs = Attrs::of(&field.attrs, "qapi")?;
        let ident = field.ident.as_ref().expect("named fields have names");
        let ty = &field.ty;
        if attrs.flatten {
            self.require.push(quote!(<#ty as ::qapi::Object>::require(fields)?;));
            self.take.push(quote!(let #ident = <#ty as ::qapi::Object>::take(fields)?;));
            self.put.push(quote!(::qapi::Object::put(&self.#ident, into);));
            self.members.push(quote!(<#ty as ::qapi::Object>::shape(book, shape);));
            return Ok(());
        }
        if attrs.rest {
            self.take.push(quote!(let #ident = fields.rest();));
            self.put.push(quote!(into.extend(self.#ident.clone());));
            self.members.push(quote!(shape.open = true;));
            return Ok(());
        }
        let name = attrs.wire_name(ident, outer);
        let aliases = &attrs.aliases;
        let (doc, features) = (&attrs.doc, &attrs.features);
        let (inner, optional) = match (&attrs.default, option_inner(ty)) {
            (Some(_), _) => (ty, true),
            (None, Some(inner)) => (inner, true),
            (None, None) => (ty, false),
        };
        let slot = format_ident!("{}", ident);
        if !optional {
            self.require.push(quote!(fields.require::<#ty>(#name, &[#(#aliases),*])?;));
            self.take.push(quote!(let #slot = fields.take::<#ty>(#name, &[#(#aliases),*])?;));
        } else {
            let otherwise = match &attrs.default {
                Some(Some(value)) => quote!(.unwrap_or_else(|| #value)),
                Some(None) => quote!(.unwrap_or_default()),
                None => quote!(),
            };
            self.take.push(
                quote!(let #slot = fields.take_optional::<#inner>(#name, &[#(#aliases),*])? #otherwise;),
            );
        }
        self.put.push(match (optional, &attrs.default) {
            (true, None) => quote! {
                if let Some(value) = &self.#ident {
                    into.insert(#name.into(), ::qapi::Describe::write(value));
                }
            },
            _ => quote!(into.insert(#name.into(), ::qapi::Describe::write(&self.#ident));),
        });
        self.members.push(quote! {
            let ty = <#inner as ::qapi::Describe>::describe(book);
            shape.member(#name, ty, #optional, #doc, &[#(#features),*]);
        });
        Ok(())
    }
}

/// `T` of `Option<T>`.
fn option_inner(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first() {
        Some(GenericArgument::Type(inner)) if last.ident == "Option" => Some(inner),
        _ => None,
    }
}
