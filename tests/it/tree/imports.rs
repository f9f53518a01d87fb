//! Who imports whom, file by file: the graph of the paths that the sources name, and the circles in it. Parsed by `syn`, so
//! that every form of `use` counts; code under `#[cfg(test)]` does not. In the tokens of a macro call only paths that begin
//! with `crate` or `super` are seen. No file may import by a glob (`use a::*`), whose names could not be followed.
//!
//! A file depends on the file that *defines* what it names: a re-export (`pub use`) is followed to there, and is no
//! dependency of the file that has it.

use super::root;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    path::Path,
};
use syn::{
    Attribute, Item, UseTree,
    buffer::{Cursor, TokenBuffer},
    visit::{self, Visit},
};

/// The crates, by the files at their roots.
const CRATES: &[&str] =
    &["broker-adapter/src/lib.rs", "gateway/src/lib.rs", "gateway/client/src/lib.rs", "tests/src/lib.rs"];

/// A module's path from its crate's root: `["redis", "write"]`.
pub(super) type ModulePath = Vec<String>;

/// What the graph has to know of a file, which is one module (inline modules count as a part of their file).
#[derive(Default)]
struct Module {
    file: String,
    /// The names that it defines, child modules left out.
    defines: BTreeSet<String>,
    /// The names of its types, traits and aliases, those inside of functions and inline modules too.
    types: Vec<String>,
    /// The names that `use` brings in, with the paths that they stand for.
    imports: HashMap<String, Vec<String>>,
    /// Modules all of whose names it re-exports (`pub use a::*`).
    globs: Vec<Vec<String>>,
    /// Modules all of whose names it imports (`use a::*`).
    glob_imports: Vec<String>,
    /// Every path in its code and in its private `use` lines.
    named: Vec<Vec<String>>,
}

/// Collects the paths and imports of one file.
struct Reader<'a> {
    module: &'a mut Module,
    children: Vec<String>,
    depth: usize,
}

fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        attribute.path().is_ident("test")
            || (is_cfg && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test")))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

impl Reader<'_> {
    fn import(&mut self, tree: &UseTree, mut path: Vec<String>, is_public: bool) {
        let mut bring = |alias: String, path: Vec<String>| {
            if !is_public {
                self.module.named.push(path.clone());
            }
            self.module.imports.insert(alias, path);
        };
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.import(&inner.tree, path, is_public);
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.import(item, path.clone(), is_public)),
            UseTree::Name(last) if last.ident == "self" => {
                if let Some(alias) = path.last().cloned() {
                    bring(alias, path);
                }
            }
            UseTree::Name(last) => {
                path.push(last.ident.to_string());
                bring(last.ident.to_string(), path);
            }
            UseTree::Rename(last) => {
                path.push(last.ident.to_string());
                bring(last.rename.to_string(), path);
            }
            UseTree::Glob(_) if is_public => self.module.globs.push(path),
            UseTree::Glob(_) => self.module.glob_imports.push(path.join("::")),
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_test_only(attributes(item)) {
            return;
        }
        match item {
            Item::Mod(inner) if inner.content.is_none() => self.children.push(inner.ident.to_string()),
            Item::Use(import) => {
                let is_public = !matches!(import.vis, syn::Visibility::Inherited);
                self.import(&import.tree, Vec::new(), is_public);
            }
            _ => {
                if let Some(name) = name(item).filter(|_| self.depth == 0) {
                    self.module.defines.insert(name);
                }
                if matches!(item, Item::Struct(_) | Item::Enum(_) | Item::Union(_) | Item::Trait(_) | Item::Type(_)) {
                    self.module.types.extend(name(item));
                }
                self.depth += 1;
                visit::visit_item(self, item);
                self.depth -= 1;
            }
        }
    }

    /// `pub(crate)` names no dependency.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.module.named.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        add_paths(TokenBuffer::new2(call.tokens.clone()).begin(), &mut self.module.named);
        visit::visit_macro(self, call);
    }
}

/// Adds the paths among a macro's tokens that begin with `crate` or `super`.
fn add_paths(mut at: Cursor<'_>, named: &mut Vec<Vec<String>>) {
    loop {
        if let Some((inside, _, _, after)) = at.any_group() {
            add_paths(inside, named);
            at = after;
        } else if let Some((first, after)) = at.ident().filter(|(word, _)| *word == "crate" || *word == "super") {
            let mut path = vec![first.to_string()];
            at = after;
            while let Some((segment, after)) = next_segment(at) {
                path.push(segment);
                at = after;
            }
            // `pub(crate)` names no dependency.
            if path.len() > 1 {
                named.push(path);
            }
        } else if let Some((_, after)) = at.token_tree() {
            at = after;
        } else {
            return;
        }
    }
}

/// The name after `::`, and what follows it.
fn next_segment(at: Cursor<'_>) -> Option<(String, Cursor<'_>)> {
    let (name, after) = after_colon(after_colon(at)?)?.ident()?;
    Some((name.to_string(), after))
}

fn after_colon(at: Cursor<'_>) -> Option<Cursor<'_>> {
    at.punct().filter(|(punct, _)| punct.as_char() == ':').map(|(_, after)| after)
}

/// Reads a crate's module tree from its root file.
fn modules(root_file: &Path) -> BTreeMap<ModulePath, Module> {
    let mut modules = BTreeMap::new();
    let mut waiting = vec![(ModulePath::new(), root_file.to_path_buf())];
    while let Some((path, file)) = waiting.pop() {
        let source = std::fs::read_to_string(&file).expect("a source is UTF-8");
        let syntax = syn::parse_file(&source).expect("the compiler has read it");
        let shown = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        let mut module = Module { file: shown, ..Module::default() };
        let mut reader = Reader { module: &mut module, children: Vec::new(), depth: 0 };
        reader.visit_file(&syntax);
        let stem = file.file_stem().expect("a source has a name").to_string_lossy().into_owned();
        let directory = match &*stem {
            "lib" | "mod" | "main" => file.with_file_name(""),
            stem => file.with_file_name(stem),
        };
        for child in reader.children {
            let candidates = [directory.join(format!("{child}.rs")), directory.join(&child).join("mod.rs")];
            let found = candidates.into_iter().find(|file| file.exists()).expect("a module has a file");
            waiting.push(([&path[..], &[child]].concat(), found));
        }
        modules.insert(path, module);
    }
    modules
}

/// The module that defines what `path` names, seen from `from`; `None` for other crates' names, locals and methods.
fn definer(
    modules: &BTreeMap<ModulePath, Module>,
    from: &[String],
    path: &[String],
    fuel: usize,
) -> Option<ModulePath> {
    let (first, rest) = path.split_first()?;
    let fuel = fuel.checked_sub(1)?;
    match &**first {
        "crate" => return descend(modules, &[], rest, fuel),
        "self" if !rest.is_empty() => return descend(modules, from, rest, fuel),
        "super" => return descend(modules, from.split_last()?.1, rest, fuel),
        _ => {}
    }
    let module = modules.get(from)?;
    if let Some(path) = module.imports.get(first).filter(|path| path.first() != Some(first) || path.len() > 1) {
        return definer(modules, from, &[&path[..], rest].concat(), fuel);
    }
    let child = [from, std::slice::from_ref(first)].concat();
    // A single name is a local variable, even if a child module has the same name.
    if modules.contains_key(&child) {
        return if rest.is_empty() { None } else { descend(modules, &child, rest, fuel) };
    }
    module.defines.contains(first).then(|| from.to_vec())
}

/// As [`definer`], for a path that begins in the module `at`.
fn descend(modules: &BTreeMap<ModulePath, Module>, at: &[String], path: &[String], fuel: usize) -> Option<ModulePath> {
    let Some((first, rest)) = path.split_first() else { return Some(at.to_vec()) };
    let fuel = fuel.checked_sub(1)?;
    if first == "super" {
        return descend(modules, at.split_last()?.1, rest, fuel);
    }
    let module = modules.get(at)?;
    let child = [at, std::slice::from_ref(first)].concat();
    if modules.contains_key(&child) {
        return descend(modules, &child, rest, fuel);
    }
    if module.defines.contains(first) {
        return Some(at.to_vec());
    }
    if let Some(path) = module.imports.get(first) {
        return definer(modules, at, &[&path[..], rest].concat(), fuel);
    }
    module.globs.iter().find_map(|glob| definer(modules, at, &[&glob[..], path].concat(), fuel))
}

/// Which files each file depends on, both by their numbers in `modules`' order.
fn graph(modules: &BTreeMap<ModulePath, Module>) -> Vec<BTreeSet<usize>> {
    const FUEL: usize = 64;
    let numbers: BTreeMap<&ModulePath, usize> = modules.keys().zip(0..).collect();
    let dependencies = |(path, module): (&ModulePath, &Module)| {
        let named = module.named.iter().filter_map(|named| definer(modules, path, named, FUEL));
        let mut on: BTreeSet<usize> = named.map(|definer| numbers[&definer]).collect();
        on.remove(&numbers[path]);
        on
    };
    modules.iter().map(dependencies).collect()
}

/// The circles: sets of files each of which can be reached from each other one.
fn circles(graph: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reach = |from: usize| {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![from]);
        while let Some(at) = waiting.pop() {
            waiting.extend(graph[at].iter().filter(|next| seen.insert(**next)));
        }
        seen
    };
    let reached: Vec<BTreeSet<usize>> = (0..graph.len()).map(reach).collect();
    let mut circles: Vec<Vec<usize>> = Vec::new();
    for file in 0..graph.len() {
        let circle: Vec<usize> =
            (0..graph.len()).filter(|other| reached[file].contains(other) && reached[*other].contains(&file)).collect();
        if circle.first() == Some(&file) && circle.contains(&file) {
            circles.push(circle);
        }
    }
    circles
}

/// The modules at the top of a crate.
pub(super) fn top_modules(root_file: &Path) -> BTreeSet<String> {
    modules(root_file).into_keys().filter(|path| path.len() == 1).flatten().collect()
}

/// The names of all types, traits and aliases of a crate, each with the file that defines it.
pub(super) fn types(root_file: &Path) -> Vec<(String, String)> {
    let named = |module: Module| module.types.into_iter().map(move |name| (name, module.file.clone()));
    modules(root_file).into_values().flat_map(named).collect()
}

/// Every dependency of one file of a crate on another, as the paths of the two modules.
pub(super) fn dependencies(root_file: &Path) -> Vec<(ModulePath, ModulePath)> {
    let modules = modules(root_file);
    let paths: Vec<&ModulePath> = modules.keys().collect();
    let edges = graph(&modules).into_iter().enumerate();
    let pairs = edges.flat_map(|(from, on)| on.into_iter().map(move |to| (from, to)));
    pairs.map(|(from, to)| (paths[from].clone(), paths[to].clone())).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut faults = String::new();
    for root_file in CRATES {
        let modules = modules(&root().join(root_file));
        let graph = graph(&modules);
        let files: Vec<&str> = modules.values().map(|module| &*module.file).collect();
        for circle in circles(&graph) {
            let _ = writeln!(faults, "a circle of {} files:", circle.len());
            for file in &circle {
                let on: Vec<&str> = graph[*file].iter().filter(|on| circle.contains(on)).map(|on| files[*on]).collect();
                let _ = writeln!(faults, "  {} imports {}", files[*file], on.join(", "));
            }
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn names_are_not_imported_by_globs_outside_of_tests() {
    let mut faults = Vec::new();
    for root_file in CRATES {
        for module in modules(&root().join(root_file)).into_values() {
            faults.extend(module.glob_imports.iter().map(|glob| format!("{}: use {glob}::*", module.file)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The modules of sources that a test has made up, by their paths.
fn modules_of(sources: &[(&str, &str)]) -> BTreeMap<ModulePath, Module> {
    let read = |(path, source): &(&str, &str)| {
        let mut module = Module::default();
        Reader { module: &mut module, children: Vec::new(), depth: 0 }
            .visit_file(&syn::parse_str(source).expect("the source of a test parses"));
        let path: ModulePath = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        (path, module)
    };
    sources.iter().map(read).collect()
}

#[test]
fn a_path_inside_a_macro_call_is_a_dependency() {
    let modules = modules_of(&[
        ("", "mod a; mod b; mod c;"),
        ("a", "fn f() { select! { x = go(super::b::Thing { y: 1 }) => {} } }"),
        ("b", "pub struct Thing; macro_rules! m { () => { pub(crate) fn g() { $crate::c::h() } } }"),
        ("c", "pub fn h() {} #[cfg(test)] mod tests { use super::*; }"),
    ]);
    assert_eq!(graph(&modules), [BTreeSet::new(), BTreeSet::from([2]), BTreeSet::from([3]), BTreeSet::new()]);
    assert!(modules.values().all(|module| module.glob_imports.is_empty()), "only tests have one");
}

#[test]
fn a_circle_of_imports_is_found_through_a_reexport() {
    let modules = modules_of(&[
        ("", "mod a; mod b;"),
        ("a", "mod c; pub(crate) use c::Thing; pub struct Own;"),
        ("a::c", "use crate::b::Other; pub struct Thing(Other);"),
        ("b", "fn f() -> crate::a::Thing { todo() } pub struct Other; #[cfg(test)] mod tests { use crate::a::Own; }"),
    ]);
    let names: Vec<String> = modules.keys().map(|path: &ModulePath| path.join("::")).collect();
    assert_eq!(names, ["", "a", "a::c", "b"]);
    assert_eq!(
        circles(&graph(&modules)),
        [[2, 3]],
        "through the re-export, and neither by it nor by what only tests name"
    );
}
