// A day with @supabase/postgrest-js, through the gateway. Run by tests/test_official_clients.py, which sets the environment.
import assert from "node:assert/strict";
import { PostgrestClient } from "@supabase/postgrest-js";

const { GATEWAY_URL, TOKEN, ORGANIZATION } = process.env;
const signedIn = { Authorization: `Bearer ${TOKEN}` };
const api = new PostgrestClient(GATEWAY_URL, { headers: { ...signedIn, "X-Organization-ID": ORGANIZATION } });

/** The answer of a request that has to work. */
async function ok(request) {
  const answer = await request;
  assert.equal(answer.error, null, JSON.stringify(answer.error));
  return answer;
}

async function refused(request, status, expected) {
  const { error, status: got, data } = await request;
  assert.equal(got, status, JSON.stringify(error));
  assert.equal(data, null);
  for (const key of ["code", "message", "details", "hint"]) assert.ok(key in error, `${key} is missing`);
  assert.equal(error.code, expected.code);
  assert.match(error.message, expected.message);
  return error;
}

const steps = {
  async "sign in and choose an organization"() {
    const me = new PostgrestClient(GATEWAY_URL, { headers: signedIn });
    const { data } = await ok(me.rpc("sign_in"));
    assert.ok(data.organizations.some((organization) => organization.slug === ORGANIZATION));
    const { data: mine } = await ok(me.from("organizations").select("slug,kind").eq("slug", ORGANIZATION).single());
    assert.deepEqual(mine, { slug: ORGANIZATION, kind: "organization" });
  },

  async "insert one, and many"() {
    const { data: ann, status } = await ok(api.from("clients").insert({ name: "Zoë 日本 🦊" }).select().single());
    assert.equal(status, 201);
    assert.equal(ann.name, "Zoë 日本 🦊");
    const titles = ["Smith v. Jones", "A 'quoted', (one) & 100%", "In re Doe", "Ünïcode/e\u0301"];
    const { data } = await ok(api.from("cases").insert(titles.map((title) => ({ title, client_id: ann.id }))).select("title"));
    assert.deepEqual(data.map((row) => row.title), titles);
    const { data: nothing } = await ok(api.from("cases").insert({ title: "unheard" }));
    assert.equal(nothing, null);
    const { data: counted, count } = await ok(api.from("cases").insert([{ title: "one" }, { title: "two" }], { count: "exact", defaultToNull: false }).select("title"));
    assert.equal(counted.length, 2);
    assert.equal(count, 2);
  },

  async "select with filters, embedding, order, range and count"() {
    const { data, count } = await ok(
      api.from("cases").select("title, client:clients!inner(name)", { count: "exact" })
        .not("client_id", "is", null).or("status.eq.open,status.eq.closed").order("title", { ascending: false }).range(0, 1),
    );
    assert.equal(count, 4);
    assert.deepEqual(data, ["Ünïcode/e\u0301", "Smith v. Jones"].map((title) => ({ title, client: { name: "Zoë 日本 🦊" } })));
    for (const title of ["A 'quoted', (one) & 100%", "Ünïcode/e\u0301"]) {
      assert.equal((await ok(api.from("cases").select("title").eq("title", title).single())).data.title, title);
      assert.equal((await ok(api.from("cases").select("title").in("title", [title, "x,y"]))).data.length, 1);
      assert.equal((await ok(api.from("cases").select("title").ilike("title", `%${title.slice(2, 6)}%`))).data.length, 1);
    }
    const { data: nested } = await ok(api.from("clients").select("name, cases(title)").limit(1, { referencedTable: "cases" }));
    assert.equal(nested[0].cases.length, 1);
  },

  async "count without rows"() {
    const { count, data } = await ok(api.from("cases").select("*", { count: "exact", head: true }));
    assert.equal(count, 7);
    assert.equal(data, null);
    const { status } = await api.from("nothing").select("*", { head: true });
    assert.equal(status, 204); // of a 404 without a body the client makes that, wherever it comes from
    assert.equal((await ok(api.from("cases").select("title").limit(1))).data.length, 1);
  },

  async "one row, and maybe one"() {
    await refused(api.from("cases").select().single(), 406, { code: "PGRST116", message: /JSON object requested/ });
    const { data } = await ok(api.from("cases").select().eq("title", "nobody").maybeSingle());
    assert.equal(data, null);
    assert.equal((await ok(api.from("cases").select("title").eq("title", "two").maybeSingle())).data.title, "two");
  },

  async "read, change, upsert"() {
    const { data: row } = await ok(api.from("cases").select().eq("title", "one").single());
    const { data: changed } = await ok(api.from("cases").upsert({ ...row, status: "closed" }).select().single());
    assert.deepEqual(changed, { ...row, status: "closed" });
    const fresh = { id: crypto.randomUUID(), title: "upserted" };
    const { data: both } = await ok(api.from("cases").upsert([{ id: row.id, title: "one!" }, fresh]).select("id,title").order("title"));
    assert.deepEqual(both.toSorted((a, b) => (a.title < b.title ? -1 : 1)), [{ id: row.id, title: "one!" }, fresh]);
    const { data: ignored } = await ok(api.from("cases").upsert({ ...fresh, title: "late" }, { ignoreDuplicates: true }).select());
    assert.deepEqual(ignored, []);
    await refused(api.from("cases").update({ id: crypto.randomUUID() }).eq("id", row.id), 409, { code: "PT409", message: /^ID_IS_FIXED: / });
  },

  async "update and delete"() {
    const { data } = await ok(api.from("cases").update({ status: "closed" }).like("title", "upserted").select("status"));
    assert.deepEqual(data, [{ status: "closed" }]);
    const { count, status } = await ok(api.from("cases").delete({ count: "exact" }).eq("title", "upserted"));
    assert.deepEqual([count, status], [1, 204]);
  },

  async "call functions by GET and POST"() {
    for (const options of [{ get: true }, {}]) {
      const { data } = await ok(api.rpc("usage_summary", {}, options));
      assert.ok(Array.isArray(data));
    }
    const slug = `js-${crypto.randomUUID().slice(0, 8)}`;
    const { data } = await ok(api.rpc("create_organization", { name: "Neu", slug, timezone: "Europe/Vienna" }));
    assert.equal(data.slug, slug);
  },

  async "export CSV"() {
    const { data } = await ok(api.from("clients").select("name").csv());
    assert.equal(data, 'name\n"Zoë 日本 🦊"');
  },

  async "errors say what to do"() {
    await refused(api.from("cases").select("nothing"), 400, { code: "42703", message: /nothing/ });
    await refused(api.from("cases").insert({ title: "" }), 400, { code: "23514", message: /check constraint/ });
    const other = await refused(api.from("cases").select().setHeader("X-Organization-ID", "other"), 403, { code: "PT403", message: /^NOT_A_MEMBER: / });
    assert.match(other.hint, /organizations/);
    const broken = new PostgrestClient(GATEWAY_URL, { headers: { Authorization: "Bearer no.to.ken" } });
    const token = await refused(broken.from("cases").select(), 401, { code: "PT401", message: /^INVALID_TOKEN: / });
    assert.match(token.hint, /Bearer/);
    const counted = await refused(api.from("cases").select("*", { count: "planned" }), 400, { code: "PT400", message: /^COUNT_NOT_EXACT: / });
    assert.match(counted.hint, /exact/);
    await assert.rejects(async () => await api.from("cases").select().single().throwOnError(), { code: "PGRST116" });
  },

  async "abort"() {
    const controller = new AbortController();
    const pending = api.from("cases").select().abortSignal(controller.signal).then((answer) => answer);
    controller.abort();
    const { error } = await pending;
    assert.match(error.message, /AbortError/);
    await ok(api.from("cases").select("title").limit(1));
  },

  async "many values in a URL"() {
    const ids = Array.from({ length: 150 }, () => crypto.randomUUID());
    assert.deepEqual((await ok(api.from("cases").select("id").in("id", ids))).data, []);
  },
};

for (const [name, step] of Object.entries(steps)) {
  try {
    await step();
    console.log(`ok ${name}`);
  } catch (error) {
    console.error(`FAILED ${name}\n${error.stack}`);
    process.exitCode = 1;
    break;
  }
}
