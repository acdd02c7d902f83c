// Checks custom resources against the schemas of their operator: a JSON list on standard input.
// Prints a line for each fault, and fails for a kind that it has no schema of.
import { readFileSync } from "node:fs";
import * as operator from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const name = `${resource.kind} ${resource.metadata.name}`;
  const Model = operator[resource.kind];
  if (resource.apiVersion !== "monitoring.coreos.com/v1" || Model === undefined) {
    console.log(`${name}: there is no schema of it`);
    continue;
  }
  try {
    new Model(resource).validate();
  } catch (fault) {
    console.log(`${name}: ${fault.message}`);
  }
}
