"""JSON Schemas of every kind, by name, and which of them decoding has to refuse."""

import json
from decimal import Decimal, localcontext

import jsonschema
from jsonschema.validators import validator_for


def is_valid(text, schema):
    "What jsonschema says, on numbers as they are written: in binary 0.07 is no multiple of 0.01."
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    kind = validator_for(exact, default=jsonschema.Draft202012Validator)
    try:
        with localcontext(prec=700):
            return kind(exact, format_checker=kind.FORMAT_CHECKER).is_valid(json.loads(text, parse_float=Decimal))
    except ValueError:
        return False


def obj(required=None, more=False, **properties):
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required, "additionalProperties": more}


TEXT, WHOLE, NUMBER, YES, NULL = ({"type": t} for t in ("string", "integer", "number", "boolean", "null"))


def array(items, **bounds):
    return {"type": "array", "items": items, **bounds}


NODE = {"$ref": "#/$defs/node", "$defs": {"node": obj(name=TEXT, children=array({"$ref": "#/$defs/node"}))}}
TICKET = obj(["product", "priority"], product={"enum": ["vpn", "printer", "mail", "laptop"]}, priority={"type": "integer", "minimum": 1, "maximum": 4},
             room={"type": ["string", "null"]}, tags=array({"type": "string", "maxLength": 12}, maxItems=4))

SCHEMAS = {
    "text": TEXT, "whole": WHOLE, "number": NUMBER, "boolean": YES, "null": NULL, "anything": {},
    "any of the simple types": {"type": ["string", "integer", "null"]},
    "short text": {"type": "string", "maxLength": 3}, "long text": {"type": "string", "minLength": 25}, "text of 5": {"type": "string", "minLength": 5, "maxLength": 5},
    "enum": {"enum": ["low", "high"]}, "mixed enum": {"enum": [1, "one", None, True, 2.5, [1], {"a": 1}]}, "long enum": {"enum": [f"category {i:03} of the catalogue" for i in range(400)]},
    "prefix enum": {"enum": ["a", "ab", "abc", "abcd", "b"]}, "quoted enum": {"enum": ['say "hi"', "back\\slash", "line\nbreak", "tab\t", "", " "]},
    "unicode enum": {"enum": ["größe", "寿司", "🙂", "naïve café", "Ω"]}, "const text": {"const": "fixed"}, "const object": {"const": {"a": [1, {"b": None}]}}, "const number": {"const": -12.5},
    "bounded whole": {"type": "integer", "minimum": -3, "maximum": 1234}, "positive": {"type": "integer", "exclusiveMinimum": 0}, "far bound": {"type": "integer", "minimum": 123456},
    "bounded number": {"type": "number", "minimum": 0, "maximum": 1}, "open bounds": {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 2.25},
    "multiple": {"type": "integer", "multipleOf": 7}, "bounded multiple": {"type": "integer", "multipleOf": 5, "minimum": 11, "maximum": 200}, "price": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 500},
    "code pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "loose pattern": {"type": "string", "pattern": "[0-9]"}, "alternatives": {"type": "string", "pattern": "^(yes|no|maybe later)$"},
    "repeated pattern": {"type": "string", "pattern": "^([a-z]+-)*[a-z]+$"}, "bounded pattern": {"type": "string", "pattern": "^[a-f0-9]+$", "minLength": 8, "maxLength": 16},
    "late end": {"type": "string", "pattern": "^a*b$"}, "digits": {"type": "string", "pattern": "^\\d{2,4}$"},
    **{f"format {name}": {"type": "string", "format": name} for name in ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "duration")},
    "empty object": obj(), "any object": {"type": "object"}, "open object": obj(more=True, a=WHOLE), "ticket": TICKET, "optional only": obj([], a=TEXT, b=WHOLE, c=YES),
    "optional before required": obj(["z"], a=TEXT, b=TEXT, z=WHOLE), "many fields": obj(**{f"field_{i}": YES for i in range(12)}), "nested": obj(a=obj(b=obj(c=obj(d=WHOLE)))),
    "unicode keys": obj(**{"größe": WHOLE, "名前": TEXT, "🙂": YES}), "odd keys": obj(**{"with space": YES, 'with "quote"': NULL, "a/b~c": WHOLE, "": YES, "$ref": TEXT}),
    "similar keys": obj(["name"], na=TEXT, name=TEXT, names=array(TEXT), name_id=WHOLE), "map of numbers": {"type": "object", "additionalProperties": NUMBER},
    "map of one": {"type": "object", "additionalProperties": WHOLE, "minProperties": 1}, "pattern keys": {"type": "object", "patternProperties": {"^x_": WHOLE}, "additionalProperties": False},
    "required and free": {"type": "object", "required": ["id"], "additionalProperties": TEXT}, "typed by property": {"properties": {"a": WHOLE}, "required": ["a"], "type": "object"},
    "list": array(WHOLE), "list of 3": array(YES, minItems=3, maxItems=3), "at least 2": array(obj(a=WHOLE), minItems=2), "at most 2": array(TEXT, maxItems=2), "list of lists": array(array(NUMBER)),
    "tuple": {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2}, "tuple and more": {"type": "array", "prefixItems": [WHOLE], "items": YES}, "list of enums": array({"enum": ["a", "b"]}, minItems=1, maxItems=5),
    "any of": {"anyOf": [WHOLE, obj(a=TEXT), array(NULL)]}, "optional value": obj(a={"anyOf": [TEXT, NULL]}), "all of": {"allOf": [obj(more=True, a=TEXT), obj(more=True, b=WHOLE)]},
    "one of, told apart": {"oneOf": [obj(kind={"const": "cat"}, lives=WHOLE), obj(kind={"const": "dog"}, breed=TEXT)]}, "one of types": {"oneOf": [TEXT, YES]},
    "definitions": {"$defs": {"point": obj(x=NUMBER, y=NUMBER)}, **obj(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"})},
    "tree": NODE, "linked list": {"$ref": "#/$defs/l", "$defs": {"l": obj(value=WHOLE, next={"anyOf": [{"$ref": "#/$defs/l"}, NULL]})}},
    "recursive first": {"$ref": "#/$defs/l", "$defs": {"l": obj(["name"], child={"$ref": "#/$defs/l"}, name=TEXT)}}, "expression": {"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [
        NUMBER, obj(op={"enum": ["+", "*"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"})]}}}, "whole schema again": obj(["n"], n=WHOLE, more={"$ref": "#"}),
    "draft 7": {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": WHOLE}, **obj(a={"$ref": "#/definitions/a"})},
    "descriptions": {"title": "T", "description": "d", "examples": [1], "default": {}, **obj(a={"type": "string", "description": "x", "default": "y"})},
    "order": obj(id={"type": "string", "pattern": "^ORD-\\d{6}$"}, when={"type": "string", "format": "date-time"}, lines=array(obj(sku=TEXT, n={"type": "integer", "minimum": 1, "maximum": 99},
                 price={"type": "number", "minimum": 0, "multipleOf": 0.01, "maximum": 1000}), minItems=1, maxItems=3), paid=YES),
    "extraction": obj(people=array(obj(["name"], name=TEXT, age={"type": ["integer", "null"], "minimum": 0, "maximum": 130}, email={"type": "string", "format": "email"})), language={"enum": ["de", "en", "es", "fr"]}),
}

# What the grammar cannot keep to is refused before decoding; the answers are then parsed and repaired.
REFUSED = {
    "not": {"not": TEXT}, "unique": array(WHOLE, uniqueItems=True), "conditional": {"if": WHOLE, "then": {"minimum": 3}}, "depends": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "schema depends": {"type": "object", "dependentSchemas": {"a": obj(more=True, b=WHOLE)}}, "names": {"type": "object", "propertyNames": {"pattern": "^a"}}, "contains": {"type": "array", "contains": WHOLE},
    "look ahead": {"type": "string", "pattern": "^(?=a)"}, "unknown format": {"type": "string", "format": "iri"}, "one of, overlapping": {"oneOf": [TEXT, {"minLength": 2}]},
    "two free keys": {"type": "object", "minProperties": 2}, "unevaluated": {"allOf": [obj(more=True, a=WHOLE)], "unevaluatedProperties": False}, "impossible": {"type": "integer", "minimum": 5, "maximum": 3},
    "nothing": {"enum": []}, "old tuple": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [TEXT]},
    "old bounds": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "number", "minimum": 1, "exclusiveMinimum": True},
}
