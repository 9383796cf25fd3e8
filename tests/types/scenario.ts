// What must compile against the generated types, and, marked by ts-expect-error, what must not.
import { PostgrestClient } from '@supabase/postgrest-js'

import type { Database } from './database'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function is<A, B>(..._same: Equal<A, B> extends true ? [] : ['these types differ', A, B]): void {}

const db = new PostgrestClient<Database>('http://127.0.0.1:8000/api/v1')

export async function readRows(): Promise<void> {
  const { data } = await db.from('cases').select('title, status, client_id').eq('status', 'open').order('created_at')
  is<typeof data, { title: string; status: 'open' | 'closed'; client_id: string | null }[] | null>()

  const one = await db.from('usage_events').select().limit(1).single()
  if (one.data) {
    is<typeof one.data.cost_cents, number | null>()
    is<typeof one.data.action, string>()
    is<typeof one.data.ts, string>()
  }

  const exact = await db.from('invoices').select('total_cents::text').single()
  if (exact.data) is<typeof exact.data.total_cents, string>()

  // @ts-expect-error there is no such view
  await db.from('case').select()
  const wrong = await db.from('cases').select('title, color')
  // @ts-expect-error there is no such column
  wrong.data?.[0]?.title
  // @ts-expect-error there is no such status
  await db.from('cases').select().eq('status', 'opened')
  // @ts-expect-error null is to be dealt with
  one.data?.cost_cents.toFixed(2)
}

export async function embed(): Promise<void> {
  const up = await db.from('cases').select('title, clients(name, email)').single()
  if (up.data) is<typeof up.data.clients, { name: string; email: string | null } | null>()

  const down = await db.from('clients').select('name, cases(title, documents(size_bytes))').single()
  if (down.data) is<typeof down.data.cases, { title: string; documents: { size_bytes: number }[] }[]>()

  const bill = await db.from('invoices').select('number, invoice_lines(meter, amount_cents)').single()
  if (bill.data) is<typeof bill.data.invoice_lines, { meter: string | null; amount_cents: number }[]>()

  const unrelated = await db.from('cases').select('title, invoices(number)').single()
  // @ts-expect-error cases and invoices are not related
  unrelated.data?.invoices.number
}

export async function write(): Promise<void> {
  await db.from('cases').insert({ title: 'Road Runner v. Coyote' })
  await db.from('cases').insert([{ title: 'A', status: 'closed' }, { title: 'B', client_id: null }])
  await db.from('documents').update({ status: 'processed' }).eq('id', '1')
  await db.from('memberships').update({ role: 'viewer' }).eq('user_id', '1')
  await db.from('organizations').update({ name: 'Acme' }).eq('id', '1')

  // @ts-expect-error a case needs a title
  await db.from('cases').insert({ status: 'open' })
  // @ts-expect-error there is no such status
  await db.from('cases').insert({ title: 'A', status: 'done' })
  // @ts-expect-error a title is text
  await db.from('cases').update({ title: 5 }).eq('id', '1')
  // @ts-expect-error a title is never null
  await db.from('cases').update({ title: null }).eq('id', '1')
  // @ts-expect-error nobody writes invoices
  await db.from('invoices').insert({ number: '1' })
  // @ts-expect-error people come by invitation
  await db.from('memberships').insert({ user_id: '1', role: 'viewer' })
  // @ts-expect-error the user of a membership is fixed
  await db.from('memberships').update({ user_id: '1' }).eq('user_id', '2')
  // @ts-expect-error organizations are founded by create_organization
  await db.from('organizations').insert({ name: 'Acme' })
}

export async function call(): Promise<void> {
  const now = await db.rpc('usage_summary')
  const then = await db.rpc('usage_summary', { period_start: '2026-01-01' }, { get: true })
  const [line] = then.data ?? []
  if (line) {
    is<typeof line.meter, string>()
    is<typeof line.unit, string | null>()
    is<typeof line.amount_cents, number>()
  }
  is<typeof now.data, typeof then.data>()

  const founded = await db.rpc('create_organization', { name: 'Acme', slug: 'acme' }).select('id, slug')
  if (founded.data) is<typeof founded.data, { id: string; slug: string }>()

  await db.rpc('sign_in')
  // @ts-expect-error a slug is needed
  await db.rpc('create_organization', { name: 'Acme' })
  // @ts-expect-error a day is text
  await db.rpc('usage_summary', { period_start: 1 })
  // @ts-expect-error there is no such function
  await db.rpc('delete_everything')
}
