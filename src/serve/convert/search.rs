//! How a request wants to search, filter and blend.

use super::argument;
use crate::blend::BlendParams;
use crate::flow::{Aim, App, Error, Width};
use crate::index::{SearchParams, TargetRecall};
use crate::serve::proto::{self, filter};
use crate::types::{Filter, ItemId, QueryKind};

/// What the cache does to the queries, with the server's defaults filled in.
pub(in crate::serve) fn blend_params(
    app: &App,
    params: Option<proto::BlendParams>,
) -> Result<BlendParams, Error> {
    let (params, default) = (params.unwrap_or_default(), app.default_blend);
    let blend = BlendParams {
        top_k: params.top_k.map_or(default.top_k, |k| k as usize),
        temperature: params.temperature.unwrap_or(default.temperature),
        weight: params.weight.unwrap_or(default.weight),
    };
    blend.validate().map_err(|e| match &e {
        crate::blend::Error::Parameter { name, .. } => argument(format!("blend.{name}"), e.to_string()),
        _ => Error::Blend(e),
    })?;
    Ok(blend)
}

/// How the cache is searched, with the server's defaults filled in.
pub(in crate::serve) fn search_params(
    app: &App,
    params: Option<&proto::SearchParams>,
) -> Result<SearchParams, Error> {
    let (params, default) = (params.cloned().unwrap_or_default(), app.default_search);
    let search = SearchParams {
        ef_search: params.ef_search.map_or(default.ef_search, |ef| ef as usize),
        rescore: params.rescore.map(|n| n as usize).or(default.rescore),
        exact: params.exact,
        ..default
    };
    search.validate().map_err(|e| match &e {
        crate::index::Error::Parameter { name, .. } => argument(format!("search.{name}"), e.to_string()),
        _ => Error::Cache(e.into()),
    })?;
    Ok(search)
}

/// Which items may be found. A condition that names nothing is refused: it is more likely forgotten than meant, and would
/// let through everything or nothing.
pub(in crate::serve) fn filter(filter: Option<proto::Filter>) -> Result<Option<Filter>, Error> {
    let mut left = FilterRoom { conditions: Filter::MAX_CONDITIONS, values: Filter::MAX_VALUES };
    filter.map(|filter| condition(filter, "filter", Filter::MAX_DEPTH, &mut left)).transpose()
}

/// What a filter may still hold.
struct FilterRoom {
    conditions: usize,
    values: usize,
}

fn condition(
    condition: proto::Filter,
    field: &str,
    depth: usize,
    left: &mut FilterRoom,
) -> Result<Filter, Error> {
    let Some(condition) = condition.condition else {
        return Err(argument(field, "has no condition; set one of its fields"));
    };
    let Some(depth) = depth.checked_sub(1) else {
        let limit = Filter::MAX_DEPTH;
        return Err(argument(
            field,
            format!("lies deeper than the limit of {limit} conditions in each other"),
        ));
    };
    left.conditions = left.conditions.checked_sub(1).ok_or_else(|| {
        argument(field, format!("is beyond the limit of {} conditions in a filter", Filter::MAX_CONDITIONS))
    })?;
    let mut take = |field: String, count: usize| match left.values.checked_sub(count) {
        _ if count == 0 => Err(argument(field, "is empty; name at least one, or leave the condition out")),
        None => {
            let limit = Filter::MAX_VALUES;
            Err(argument(field, format!("is beyond the limit of {limit} values and ids in a filter")))
        }
        Some(rest) => {
            left.values = rest;
            Ok(())
        }
    };
    let named = |field: String, name: String| match name.is_empty() {
        true => Err(argument(field, "is empty; name a tag")),
        false => Ok(name),
    };
    Ok(match condition {
        filter::Condition::Tag(proto::TagCondition { key, values }) => {
            take(format!("{field}.tag.values"), values.len())?;
            let key = named(format!("{field}.tag.key"), key)?;
            Filter::Tag { key, values: values.into_iter().collect() }
        }
        filter::Condition::HasTag(key) => Filter::HasTag(named(format!("{field}.has_tag"), key)?),
        filter::Condition::Ids(proto::ItemIds { ids }) => {
            take(format!("{field}.ids.ids"), ids.len())?;
            Filter::Ids(ids.into_iter().map(ItemId).collect())
        }
        filter::Condition::AllOf(all) => {
            Filter::All(conditions(all, &format!("{field}.all_of"), depth, left)?)
        }
        filter::Condition::AnyOf(any) => {
            Filter::Any(conditions(any, &format!("{field}.any_of"), depth, left)?)
        }
        filter::Condition::NoneOf(none) => {
            let mut none = conditions(none, &format!("{field}.none_of"), depth, left)?;
            let one = if none.len() == 1 { none.pop() } else { None };
            Filter::Not(Box::new(one.unwrap_or(Filter::Any(none))))
        }
    })
}

fn conditions(
    filters: proto::Filters,
    field: &str,
    depth: usize,
    left: &mut FilterRoom,
) -> Result<Vec<Filter>, Error> {
    if filters.filters.is_empty() {
        return Err(argument(format!("{field}.filters"), "is empty; name at least one condition"));
    }
    let each = filters.filters.into_iter().enumerate();
    each.map(|(i, filter)| condition(filter, &format!("{field}.filters[{i}]"), depth, left)).collect()
}

/// What recall is wanted, with the server's default filled in where the request says nothing of a beam either.
pub(in crate::serve) fn aim(app: &App, params: Option<&proto::SearchParams>) -> Result<Aim, Error> {
    let Some(params) = params else { return Ok(Aim { width: app.default_width, kind: None }) };
    let kind = Some(params.query_kind.as_str()).filter(|word| !word.is_empty()).map(QueryKind::new);
    let kind = kind.transpose().map_err(|e| argument("search.query_kind", e.to_string()))?;
    let given = params.ef_search.is_some() || params.rescore.is_some();
    let width = match (params.target_recall, given) {
        (Some(_), true) => {
            let why = "chooses the beam; send it, or `ef_search` and `rescore`, not both";
            return Err(argument("search.target_recall", why));
        }
        (Some(target), false) => Width::Recall(
            TargetRecall::new(target).map_err(|e| argument("search.target_recall", e.to_string()))?,
        ),
        (None, _) if params.exact || params.ef_search.is_some() => Width::Given,
        // As many are scored again as it says, in the beam that would have been used without.
        (None, true) if matches!(app.default_width, Width::Recall(_)) => Width::Usual,
        (None, _) => app.default_width,
    };
    Ok(Aim { width: if params.exact { Width::Given } else { width }, kind })
}

/// Hits wanted by a search.
pub(in crate::serve) fn top_k(app: &App, top_k: Option<u32>) -> Result<usize, Error> {
    let top_k = top_k.map_or(app.default_blend.top_k, |k| k as usize);
    if top_k == 0 || top_k > BlendParams::MAX_TOP_K {
        return Err(argument("top_k", format!("{top_k} is not from 1 to {}", BlendParams::MAX_TOP_K)));
    }
    Ok(top_k)
}
