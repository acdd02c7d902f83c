// Turns what Prometheus answered into the frames that Grafana's data source would give.
import {
  FieldType,
  FieldConfigOptionsRegistry,
  applyFieldOverrides,
  standardTransformersRegistry,
  standardTransformers,
  toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

const number = (text) => (text === 'NaN' ? null : Number(text));
const legend = (format, labels) =>
  format.replace(/\{\{\s*([\w.]+)\s*\}\}/g, (_, name) => labels[name] ?? '');

function series(target, found) {
  const labels = { ...found.metric };
  delete labels.__name__;
  const name = legend(target.legendFormat ?? '', labels) || JSON.stringify(labels);
  const points = found.values ?? [found.value];
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: points.map(([at]) => at * 1000) },
      {
        name: 'Value',
        type: FieldType.number,
        values: points.map(([, value]) => number(value)),
        labels,
        config: { displayNameFromDS: name },
      },
    ],
  });
}

function rows(target, found, several) {
  const names = [...new Set(found.flatMap(({ metric }) => Object.keys(metric)))];
  const kept = names.filter((name) => name !== '__name__');
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: found.map(({ value }) => value[0] * 1000) },
      ...kept.map((name) => ({
        name,
        type: FieldType.string,
        config: { filterable: true },
        values: found.map(({ metric }) => metric[name] ?? ''),
      })),
      {
        name: several ? `Value #${target.refId}` : 'Value',
        type: FieldType.number,
        values: found.map(({ value }) => number(value[1])),
      },
    ],
  });
}

// What the plugin of graphs takes where a dashboard says nothing.
const GRAPH = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, pointSize: 4,
  showPoints: 'auto', spanNulls: false, axisPlacement: 'auto', axisBorderShow: false,
  scaleDistribution: { type: 'linear' }, lineStyle: { fill: 'solid' }, barAlignment: 0,
  stacking: { mode: 'none', group: 'A' }, thresholdsStyle: { mode: 'off' },
  hideFrom: { tooltip: false, viz: false, legend: false },
};

// Every option that a dashboard of ours sets; Grafana's plugins would register their own.
const STANDARD = ['unit', 'min', 'max', 'decimals', 'color', 'thresholds', 'mappings', 'noValue', 'links'];
const option = (id, path, isCustom) => ({
  id, path, isCustom, name: id, process: (value) => value, shouldApply: () => true,
});
const registry = new FieldConfigOptionsRegistry(() => [
  ...STANDARD.map((name) => option(name, name, false)),
  ...[...Object.keys(GRAPH), 'axisSoftMax', 'cellOptions', 'align'].map((name) =>
    option(`custom.${name}`, name, true),
  ),
]);

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map(
    (info) => ({ id: info.id, name: info.id, transformation: () => Promise.resolve(info) }),
  ),
);

export function fieldConfig(panel) {
  const { defaults = {}, overrides = [] } = panel.fieldConfig;
  const custom = panel.type === 'timeseries' ? { ...GRAPH, ...defaults.custom } : defaults.custom;
  return { defaults: { ...defaults, custom }, overrides };
}

export async function frames(panel, answers, theme) {
  const targets = panel.targets ?? [];
  const table = panel.type === 'table';
  let made = targets.flatMap((target) => {
    const found = answers[target.refId] ?? [];
    if (table) return found.length ? [rows(target, found, targets.length > 1)] : [];
    return found.map((one) => series(target, one));
  });
  if (table && panel.transformations) {
    made = await firstValueFrom(transformDataFrame(panel.transformations, made));
  }
  return applyFieldOverrides({
    data: made,
    fieldConfig: fieldConfig(panel),
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}
