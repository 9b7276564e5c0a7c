"""Whether a component is one: its definitions are checked, once each (library; in the compiler).

Binary.md and Explainer.md ("Type Definitions", "Type Checking", "Import and Export Definitions").
A component is checked with resources that stand for whatever it will be given, so what holds for it
holds for each of its instances. What comes out are its index spaces, with the types of everything.
"""
